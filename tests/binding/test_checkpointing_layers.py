"""Blocks that are whole layers, around whose ``forward`` transformers puts gradient checkpointing."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import pickle
import sys
import types

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import modeling_layers

import patchkit
from patchkit.binding.patch import patch_of
from patchkit.testing import add_lora, fused_calls
from patchkit.trust import policy
from patchkit.upstream.known_wrappers import is_checkpointing_wrapper, puts_checkpointing_around

Base = modeling_layers.GradientCheckpointingLayer
wraps_forward = pytest.mark.skipif(
    "__init_subclass__" not in vars(Base), reason="this transformers checkpoints in __call__, around every forward"
)

TEXT = """
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

class Layer(GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.activation_fn = nn.GELU()

    def forward(self, hidden_states, scale=1.0):
        residual = hidden_states
        hidden_states = self.norm(hidden_states)
        hidden_states = self.fc2(self.activation_fn(self.fc1(hidden_states)))
        return residual + hidden_states * scale

class Lower(Layer):
    pass

class Model(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.layers = nn.ModuleList(cls() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, scale=0.5)
        return x
"""


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(policy, "_decided", {})


@pytest.fixture
def module(tmp_path, monkeypatch):
    return imported("checkpointed_layers", TEXT, tmp_path, monkeypatch)


def imported(name, text, folder, monkeypatch):
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, found)
    spec.loader.exec_module(found)
    return found


def adapted(module, cls="Layer"):
    torch.manual_seed(0)
    model = module.Model(getattr(module, cls))
    return add_lora(model, target_modules=["fc1", "fc2"], task_type=None, r=2).train()


def results(model, calls=None, *, use_reentrant=None):
    """Output and gradients; with checkpointing if it is said of which kind."""
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for layer in model.modules():
        if isinstance(layer, Base):
            layer.gradient_checkpointing = use_reentrant is not None
            layer._gradient_checkpointing_func = lambda function, *args: (
                calls.append(function) or checkpoint(function, *args, use_reentrant=use_reentrant)
            )
    with fused_calls() as counted:
        y = model(x)
        y.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"y": y.detach(), "x": x.grad, **grads}, counted.count("lora_mlp")


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [None, False, True])
@pytest.mark.parametrize("cls", ["Layer", "Lower"])
def test_equal_and_checkpointed_once(module, cls, use_reentrant):
    reference = adapted(module, cls)
    model = copy.deepcopy(reference)
    report = patchkit.apply(model, trust="always")
    assert {(row.module_class, row.part, row.level) for row in report.rows} == {(cls, "mlp", "fused")}
    upstream, ours = [], []
    expected, _ = results(reference, upstream, use_reentrant=use_reentrant)
    found, counted = results(model, ours, use_reentrant=use_reentrant)
    assert_equal(found, expected)
    # One checkpoint for each layer, in which the layer is run a second time.
    assert len(ours) == len(upstream) == (0 if use_reentrant is None else 2)
    assert counted == (2 if use_reentrant is None else 4)


@wraps_forward
class TestTheWrapper:
    def test_is_transformers_own_and_knows_itself(self, module):
        model = adapted(module)
        patchkit.apply(model, trust="always")
        cls = type(model.base_model.model.layers[0])
        assert patch_of(model.base_model.model.layers[0]) is not None
        assert is_checkpointing_wrapper(vars(cls)["forward"])
        assert cls.forward is vars(cls)["forward"]  # what it looks up to see whether it is the outermost
        assert inspect.signature(cls.forward) == inspect.signature(module.Layer.forward)

    @pytest.mark.parametrize("use_reentrant", [None, False])
    def test_a_subclass_that_a_library_makes_afterwards(self, module, use_reentrant):
        """FSDP2 gives each layer a class of its own, below the patched one."""
        reference = adapted(module)
        model = copy.deepcopy(reference)
        patchkit.apply(model, trust="always")
        for one in (reference, model):
            for layer in one.base_model.model.layers:
                layer.__class__ = type(f"FSDP{type(layer).__name__}", (type(layer),), {})
        upstream, ours = [], []
        expected, _ = results(reference, upstream, use_reentrant=use_reentrant)
        found, counted = results(model, ours, use_reentrant=use_reentrant)
        assert_equal(found, expected)
        assert len(ours) == len(upstream)
        assert counted == (2 if use_reentrant is None else 4)

    @pytest.mark.parametrize("use_reentrant", [None, False])
    def test_another_forward_on_the_class_afterwards(self, module, monkeypatch, use_reentrant):
        reference = adapted(module)
        model = copy.deepcopy(reference)
        patchkit.apply(model, trust="always")
        monkeypatch.setattr(module.Layer, "forward", lambda self, x, scale: x + scale * self.fc1(self.norm(x))[..., :8])
        upstream, ours = [], []
        expected, _ = results(reference, upstream, use_reentrant=use_reentrant)
        found, counted = results(model, ours, use_reentrant=use_reentrant)
        assert_equal(found, expected)
        assert not counted
        (why,) = {row.reason for row in patchkit.report(model).rows if row.part == "mlp"}
        assert "its forward was replaced by" in why

    def test_revert_copy_and_pickle(self, module):
        reference = adapted(module)
        model = copy.deepcopy(reference)
        patchkit.apply(model, trust="always")
        expected, _ = results(reference)
        for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.base_model.model))):
            assert_equal(results(one)[0]["y"], expected["y"])
        patchkit.revert(model)
        assert type(model.base_model.model.layers[0]) is module.Layer
        assert_equal(results(model)[0], expected)

    @pytest.mark.slow
    def test_compiled_as_one_graph(self, module):
        reference = adapted(module)
        model = copy.deepcopy(reference)
        patchkit.apply(model, trust="always")
        expected, _ = results(reference)
        found, _ = results(torch.compile(model, fullgraph=True, backend="aot_eager"))
        assert_equal({name.removeprefix("_orig_mod."): value for name, value in found.items()}, expected)


@wraps_forward
class TestWhatIsNotTransformersOwn:
    def refused(self, model):
        report = patchkit.apply(model, trust="always")
        levels = {row.part: row.level for row in report.rows}
        assert levels == {"linear": "fused"} or set(levels.values()) == {"alone"}, report
        assert type(model.base_model.model.layers[0]).__module__ == "checkpointed_layers"
        return " ".join(row.reason for row in report.rows)

    def test_a_class_that_watches_its_subclasses_besides(self, tmp_path, monkeypatch):
        text = TEXT.replace(
            "class Layer(GradientCheckpointingLayer):",
            "made = []\n\nclass Watching:\n    def __init_subclass__(cls, **kwargs):\n        made.append(cls)\n"
            "        super().__init_subclass__(**kwargs)\n\nclass Layer(GradientCheckpointingLayer, Watching):",
        )
        module = imported("checkpointed_layers", text, tmp_path, monkeypatch)
        before = list(module.made)
        reference = adapted(module)
        model = copy.deepcopy(reference)
        self.refused(model)
        assert module.made == before
        assert_equal(results(model)[0], results(reference)[0])

    @pytest.mark.parametrize("name", ["forward_with_checkpointing", "GradientCheckpointingLayer"])
    def test_a_name_is_not_enough(self, tmp_path, monkeypatch, name):
        """A base of the same name that does something else is a user's code like any other."""
        base = (
            "class GradientCheckpointingLayer(nn.Module):\n"
            "    def __init_subclass__(cls, **kwargs):\n"
            "        inner = cls.forward\n"
            "        def forward_with_checkpointing(self, *args, **kwargs):\n"
            "            return 2 * inner(self, *args, **kwargs)\n"
            "        cls.forward = forward_with_checkpointing\n"
            "        cls.forward.__wrapped__ = inner\n"
        )
        text = TEXT.replace("from transformers.modeling_layers import GradientCheckpointingLayer\n", base)
        module = imported("checkpointed_layers", text, tmp_path, monkeypatch)
        assert not is_checkpointing_wrapper(module.Layer.forward)
        assert not puts_checkpointing_around(vars(module.GradientCheckpointingLayer)["__init_subclass__"])
        reference = adapted(module)
        model = copy.deepcopy(reference)
        patchkit.apply(model, trust="always")
        assert_equal(results(model)[0], results(reference)[0])
        assert type(model.base_model.model.layers[0]) is module.Layer

    def test_a_hook_that_somebody_has_replaced(self, monkeypatch):
        own = vars(Base)["__init_subclass__"]
        assert puts_checkpointing_around(own)

        def hook(cls, **kwargs):
            raise AssertionError("it runs")

        monkeypatch.setattr(Base, "__init_subclass__", classmethod(hook))
        assert not puts_checkpointing_around(own)
        assert not puts_checkpointing_around(vars(Base)["__init_subclass__"])
        monkeypatch.undo()
        monkeypatch.setitem(sys.modules, "transformers.modeling_layers", types.ModuleType("empty"))
        assert not puts_checkpointing_around(own)
