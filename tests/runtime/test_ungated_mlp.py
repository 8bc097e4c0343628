"""An MLP without a gate in a module: fused, or module by module, as it is called, checkpointed and compiled."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from trained_modules import assert_equal
from transformers.activations import ACT2FN

from patchkit.runtime.choice import choose_mlp
from patchkit.runtime.levels import input_of
from patchkit.runtime.methods import make_apply_ungated_mlp
from patchkit.testing import randomise_adapter
from patchkit.testing.fused_calls import fused_calls


class MLP(nn.Module):
    def __init__(self, activation, width=12):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(8, 12), nn.Linear(width, 8), activation

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class FusedMLP(MLP):
    apply_mlp = make_apply_ungated_mlp("fc1", "fc2", "act", "peft")

    def forward(self, x):
        return self.apply_mlp(x)


FUSED = {
    "relu": nn.ReLU,
    "relu2": lambda: ACT2FN["relu2"],
    "quick_gelu": lambda: ACT2FN["quick_gelu"],
    "gelu_new": lambda: ACT2FN["gelu_new"],
    "F.gelu": lambda: F.gelu,
    "torch.relu": lambda: torch.relu,
}
CALLED = {
    "mish": nn.Mish,
    "rrelu": nn.RReLU,
    "dropout before": lambda: nn.Sequential(nn.Dropout(0.4), nn.GELU()),
    "F.mish": lambda: F.mish,
}
ACTIVATIONS = {**FUSED, **CALLED}
TARGETS = {"both": ["fc1", "fc2"], "up": ["fc1"], "down": ["fc2"], "none": []}


def pair(activation, targets=TARGETS["both"], **options):
    """A module and the same one whose MLP is fused, with adapters on ``targets``."""
    torch.manual_seed(0)
    module = MLP(ACTIVATIONS[activation]())
    if targets:
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **options)
        module = peft.inject_adapter_in_model(config, module)
        randomise_adapter(module)
    fused = copy.deepcopy(module)
    fused.__class__ = FusedMLP
    return module.train(), fused.train()


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.4}, {"use_dora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equal_and_fused(activation, targets, options):
    reference, module = pair(activation, TARGETS[targets], **options)
    with fused_calls() as calls:
        assert_equal(reference, module, x_grad=targets != "down")
    alone = {"both": ["lora_linear"] * 2, "up": ["lora_linear"], "down": ["lora_linear"], "none": []}
    assert calls == (["lora_mlp"] if activation in FUSED else alone[targets])


CHECKPOINTS = {
    "not reentrant": lambda module, x: checkpoint(module, x, use_reentrant=False),
    "reentrant": lambda module, x: checkpoint(module, x, use_reentrant=True),
}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("activation", ["relu", "quick_gelu", "mish", "rrelu"])
def test_checkpointed(activation, kind, dropout):
    assert_equal(*pair(activation, lora_dropout=dropout), CHECKPOINTS[kind])


def test_what_the_first_run_fused_the_second_fuses_too():
    """A hook that comes in between is called in the recomputation, and what is saved stays what it was."""
    reference, module = pair("relu")
    calls = []

    def call(module, x):
        y = CHECKPOINTS["not reentrant"](module, x)
        module.fc1.register_forward_hook(lambda *_: calls.append("hook"))
        return y

    assert_equal(reference, module, call)
    assert calls == ["hook"] * 2


@pytest.mark.parametrize("activation", ["relu", "quick_gelu", "gelu_new", "F.gelu", "mish"])
def test_compiled_without_a_graph_break(activation):
    torch.compiler.reset()
    reference, module = pair(activation)
    compiled = {id(one): torch.compile(one, fullgraph=True, backend="aot_eager") for one in (reference, module)}
    with fused_calls() as calls:
        assert_equal(reference, module, lambda one, x: compiled[id(one)](x))
    assert set(calls) == ({"lora_mlp"} if activation in FUSED else {"lora_linear"})


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_inference(targets, grad):
    reference, module = pair("relu", TARGETS[targets])
    x = torch.randn(2, 5, 8)
    with torch.set_grad_enabled(grad), fused_calls() as calls:
        torch.testing.assert_close(module.eval()(x), reference.eval()(x))
    assert calls == (["lora_mlp"] if targets != "none" or grad else [])


@pytest.mark.parametrize("part", ["fc1", "act", "fc2"])
def test_hooks_are_called(part):
    """And no part is fused with what has one."""
    reference, module = pair("relu")
    logs = []
    for one in (reference, module):
        log = []
        getattr(one, part).register_forward_hook(lambda *_, log=log: log.append(part))
        logs.append(log)
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert logs[0] == logs[1] == [part]
    assert calls == ["lora_linear"] * (2 if part == "act" else 1)


def test_why_it_is_not_fused():
    x = torch.randn(5, 8)
    given = input_of(x, "peft")
    for module, reason in (
        (pair("mish")[1], "activation Mish: it is not fused"),
        (pair("rrelu")[1], "activation RReLU: it is not fused"),
        (FusedMLP(nn.ReLU(inplace=True)), "activation ReLU: it works in place"),
    ):
        choice = choose_mlp((module.fc1,), module.fc2, module.act, x, given, gated=False)
        assert (choice.precision, choice.reason) == (None, reason)


@pytest.mark.parametrize("width", [6, 24])
def test_widths_that_do_not_fit_are_upstreams_error(width):
    """Half or double of what up yields: the widths that a gate beside it would explain."""
    reference, module = MLP(nn.ReLU(), width), FusedMLP(nn.ReLU(), width)
    for one in (reference, module):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            one(torch.randn(5, 8))
