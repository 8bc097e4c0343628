"""Which way an activation's ops are run where nothing has to see them: kernels, the reference, or by the dispatcher."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.ops import elementwise, registration
from patchkit_kernels.ops.elementwise import ElementwiseOps


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def tensor(kind: str, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(is_cpu=kind == "cpu", device=SimpleNamespace(type=kind), dtype=dtype)


WAYS = {
    "a CPU": (tensor("cpu"), True, nullcontext, False),
    "a CPU, in a mode": (tensor("cpu"), True, Seen, None),
    "a GPU": (tensor("cuda"), True, nullcontext, True),
    "a GPU, in a mode": (tensor("cuda"), True, Seen, None),
    "a GPU, in bfloat16": (tensor("cuda", torch.bfloat16), True, nullcontext, True),
    "a GPU, in float64": (tensor("cuda", torch.float64), True, nullcontext, False),
    "a GPU without Triton": (tensor("cuda"), False, nullcontext, False),
    "another device": (tensor("mps"), True, nullcontext, False),
}


@pytest.mark.parametrize("name", WAYS)
def test_which_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, available, context, expected = WAYS[name]
    monkeypatch.setattr(registration, "TRITON_AVAILABLE", available)
    with context():
        assert registration.runs_kernel(given) is expected


@pytest.mark.parametrize(
    ("way", "forward", "recompute"),
    [
        (None, "forward", "backward_recompute"),
        (False, "reference", "backward_recompute_reference"),
        (True, "launch", "launch_backward_recompute"),
    ],
)
def test_what_runs(way: bool | None, forward: str, recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "runs_kernel", lambda given: way)
    names = ("forward", "reference", "launch")
    names += ("backward_recompute", "backward_recompute_reference", "launch_backward_recompute")
    ops = SimpleNamespace(**{name: lambda *args, name=name: (name, args) for name in names})
    assert ElementwiseOps.run(ops, 1, 2) == (forward, (1, 2))  # type: ignore[arg-type]
    assert ElementwiseOps.run_backward_recompute(ops, 1, 2, 3) == (recompute, (1, 2, 3))  # type: ignore[arg-type]


def test_a_fake_tensor_outside_of_its_mode_is_left_to_the_dispatcher() -> None:
    """No kernel could be launched for it."""
    with FakeTensorMode():
        fake = torch.empty(3, device="cuda")
    assert registration.runs_kernel(fake) is None
