"""Classes of a running program: registered ones, remote code, a user's own, and those that transformers wraps."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from patchkit.arch.registry import architectures
from patchkit.arch.spec import MLP, Attention, Block, GatedMLP
from patchkit.derivation.derive import derive, derive_from_text
from patchkit.upstream.live import read_method

REGISTERED = [
    pytest.param(architecture.module, block, id=f"{architecture.name}-{block.class_name}")
    for architecture in architectures().values()
    for block in architecture.blocks
    if architecture.module.startswith("transformers.")
]


@pytest.mark.parametrize(("module", "block"), REGISTERED)
def test_what_is_derived_is_what_is_written(module: str, block: Block) -> None:
    """Nothing in the code says in which tower a block sits."""
    loaded = importlib.import_module(module)
    assert derive(getattr(loaded, block.class_name)) == replace(block, tower="text")
    assert loaded.__file__ is not None
    assert derive_from_text(Path(loaded.__file__).read_text(), block.class_name) == replace(block, tower="text")


# ---- code that is no part of a package


SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP


class RemoteAttention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.wqs, self.wks = nn.Linear(size, size), nn.Linear(size, size)
        self.a, self.b, self.c, self.d = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x):
        q, k, v = self.a(x), self.b(x), self.c(x)
        return self.d(F.scaled_dot_product_attention(q, k, v))


class RemoteMLP(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.w1 = nn.Linear(size, size)
        self.w2 = nn.Linear(size, size)
        self.w3 = nn.Linear(size, size)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Heir(RemoteMLP):
    pass


class Conv(RemoteMLP):
    def __init__(self, size):
        self.w1 = nn.Conv1d(size, size, 1)


class OwnForward(LlamaMLP):
    def forward(self, x):
        return x + self.down_proj(self.act_fn(self.gate_proj(x)))


class Above:
    class Inner(nn.Module):
        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))
"""
EXPECTED = {
    "RemoteAttention": Attention("RemoteAttention", "a", "b", "c", "d"),
    "RemoteMLP": GatedMLP("RemoteMLP", gate="w1", up="w3", down="w2", activation_function="F.silu"),
    "Heir": GatedMLP("Heir", gate="w1", up="w3", down="w2", activation_function="F.silu"),
    "OwnForward": MLP("OwnForward", up="gate_proj", down="down_proj", activation="act_fn"),
    "Above.Inner": MLP("Above.Inner", up="first", down="second", activation_function="torch.tanh"),
}


@pytest.fixture(
    params=["transformers_modules.abc123.modeling_x", "transformers_modules.org.name.0f1e.modeling_x", "own"]
)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModuleType]:
    file = tmp_path / "modeling_x.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location(request.param, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[request.param] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[request.param]


@pytest.mark.parametrize("name", EXPECTED)
def test_remote_code(remote: ModuleType, name: str) -> None:
    cls = functools.reduce(getattr, name.split("."), remote)
    assert derive(cls) == EXPECTED[name]  # type: ignore[arg-type]
    assert derive_from_text(SOURCE, name) == EXPECTED[name]


def test_bases_of_another_file_are_read_for_a_live_class(remote: ModuleType, tmp_path: Path) -> None:
    """The text alone does not say what the projections of an heir of another module's class are."""
    text = "from modeling_x import Conv\n\n\nclass Far(Conv):\n    def forward(self, x):\n" + (
        "        return self.w2(torch.relu(self.w1(x)))\n"
    )
    expected = MLP("Far", up="w1", down="w2", activation_function="torch.relu")
    assert derive_from_text(text, "Far") == expected
    file = tmp_path / "far.py"
    file.write_text(text.replace("from modeling_x import Conv", "import torch"))
    namespace = {"__name__": "far", "Conv": remote.Conv}
    sys.modules["far"] = ModuleType("far")
    try:
        exec(compile(file.read_text(), str(file), "exec"), namespace)
    finally:
        del sys.modules["far"]
    why = derive(namespace["Far"])  # type: ignore[arg-type]
    assert isinstance(why, str), why


def test_without_source_there_is_a_reason() -> None:
    namespace = {"__name__": "nowhere"}
    exec(SOURCE, namespace)
    why = derive(namespace["RemoteMLP"])  # type: ignore[arg-type]
    assert isinstance(why, str)
    assert "no source" in why


def test_a_replaced_forward_gives_a_reason(remote: ModuleType) -> None:
    remote.RemoteMLP.forward = lambda self, x: x
    why = derive(remote.RemoteMLP)
    assert isinstance(why, str)
    assert "was replaced by" in why


@pytest.mark.parametrize("cls", [nn.Module, nn.Linear, nn.GELU, nn.Sequential, nn.TransformerEncoderLayer, int])
def test_other_classes_give_a_reason(cls: type) -> None:
    assert isinstance(derive(cls), str)


# ---- what transformers puts around forward


def layers_of_transformers() -> tuple[type, type]:
    opt = pytest.importorskip("transformers.models.opt.modeling_opt")
    layers = pytest.importorskip("transformers.modeling_layers")
    if not issubclass(opt.OPTDecoderLayer, layers.GradientCheckpointingLayer):
        pytest.skip("its layers are not wrapped in this version")
    return opt.OPTDecoderLayer, layers.GradientCheckpointingLayer


def test_a_layer_that_is_wrapped_for_gradient_checkpointing() -> None:
    layer, _ = layers_of_transformers()
    assert derive(layer) == MLP("OPTDecoderLayer")


def test_an_own_layer_that_is_wrapped_for_gradient_checkpointing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    layers_of_transformers()
    text = SOURCE.replace("class RemoteMLP(nn.Module)", "class RemoteMLP(GradientCheckpointingLayer)")
    (tmp_path / "wrapped_layer.py").write_text(
        f"from transformers.modeling_layers import GradientCheckpointingLayer\n{text}"
    )
    sys.path.insert(0, str(tmp_path))
    request.addfinalizer(lambda: sys.path.remove(str(tmp_path)))
    request.addfinalizer(lambda: sys.modules.pop("wrapped_layer", None))
    module = importlib.import_module("wrapped_layer")
    for name in ("RemoteMLP", "Heir"):
        cls = getattr(module, name)
        assert vars(cls)["forward"].__wrapped__ is not None
        assert derive(cls) == EXPECTED[name]
        method = read_method(cls, "forward")
        assert not isinstance(method, str)
        assert (method.owner, method.attribute) == (module.RemoteMLP, vars(cls)["forward"])


def test_a_wrapper_of_another_one_is_not_taken_for_that_of_transformers(remote: ModuleType) -> None:
    """A base's ``forward`` that a user has wrapped for an heir is another function."""

    @functools.wraps(remote.RemoteMLP.forward)
    def forward(self: nn.Module, x: torch.Tensor) -> object:
        return remote.RemoteMLP.forward(self, 2 * x)

    remote.Heir.forward = forward
    why = derive(remote.Heir)
    assert isinstance(why, str)
    assert "was replaced by" in why


def test_experts_that_are_wrapped_have_no_linear_layer() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    if not hasattr(mixtral, "MixtralExperts"):
        pytest.skip("its experts are modules in this version")
    assert derive(mixtral.MixtralExperts) == "it calls no linear layer"


def test_nothing_is_run() -> None:
    """A descriptor, a metaclass and a property that would be seen if they were asked."""

    class Meta(type(nn.Module)):  # type: ignore[misc]
        def __getattribute__(cls, name: str) -> object:
            if name == "w1":
                raise AssertionError("asked")
            return super().__getattribute__(name)

    class Watched(nn.Module, metaclass=Meta):
        @property
        def w1(self) -> object:
            raise AssertionError("asked")

        def forward(self, x: torch.Tensor) -> object:
            return self.w1(x)  # type: ignore[operator]

    assert isinstance(derive(Watched), str)
