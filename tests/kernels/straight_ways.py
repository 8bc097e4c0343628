"""Ways of computing the structure that people train, to be compared with one another."""

from patchkit_kernels.lora import linear, mlp_function


def in_lists(monkeypatch):
    """From here on no projection and no MLP is computed without lists."""
    monkeypatch.setattr(linear, "unwatched", lambda *_: False)
    monkeypatch.setattr(linear, "trained_three", lambda *_: None)
    for name in ("trained_gated", "trained_two"):
        monkeypatch.setattr(mlp_function, name, lambda *_: None)


def general(monkeypatch):
    """From here on no structure is taken for the one that people train."""
    in_lists(monkeypatch)
    for module in (linear, mlp_function):
        monkeypatch.setattr(module, "trained", lambda _: None)
