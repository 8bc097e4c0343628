"""Layers of one variable in a module: fused, or layer by layer, as they are called, checkpointed, compiled and hooked."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from trained_modules import assert_equal

from patchkit.arch.spec import SharedInput
from patchkit.binding.classes import patched_class
from patchkit.binding.swap import swap
from patchkit.derivation.derive import derive
from patchkit.module_tree import PATCH
from patchkit.planning.levels import rows_of
from patchkit.planning.survey import Candidate
from patchkit.runtime.methods import make_apply_shared
from patchkit.testing import randomise_adapter
from patchkit.testing.fused_calls import fused_calls
from patchkit.testing.measure import count_ops, saved_bytes


class Cross(nn.Module):
    """A query of one input, two groups of others: widths differ, one layer has no bias."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 12, bias=False)
        self.a_proj, self.b_proj, self.c_proj = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(6, 12)

    def forward(self, x):
        y = 2 * x
        q = self.q_proj(x)
        k = self.k_proj(y)
        v = self.v_proj(y)
        h = q * k
        return v * self.a_proj(h) + self.b_proj(h).sigmoid() * self.c_proj(h)


GROUPS = (("k_proj", "v_proj"), ("a_proj", "b_proj", "c_proj"))
LAYERS = ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "c_proj")


def pair(targets=LAYERS, **options):
    """A module and the same one patched, with adapters on ``targets``."""
    torch.manual_seed(0)
    module = Cross()
    if targets:
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(targets), init_lora_weights=False, **options)
        module = peft.inject_adapter_in_model(config, module)
        randomise_adapter(module)
    patched = copy.deepcopy(module)
    block = derive(Cross)
    assert block == SharedInput("Cross", GROUPS)
    target = patched_class(Cross, block, frozenset({"linear"}))
    assert isinstance(target, type), target
    swap([(patched, target)])
    return module.train(), patched.train()


OPTIONS = [{}, {"lora_dropout": 0.4}, {"use_dora": True}, {"use_dora": True, "lora_dropout": 0.4}, {"lora_bias": True}]
TARGETS = {
    "all": (LAYERS, ["lora_projections"] * 2),
    "one of a group": (("v_proj", "b_proj"), ["lora_projections"] * 2),
    "one group": (("k_proj", "v_proj"), ["lora_projections"]),
    "the query": (("q_proj",), []),
    "none": ((), []),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("x_grad", [True, False])
def test_equal_and_fused(targets, options, x_grad):
    layers, expected = TARGETS[targets]
    reference, module = pair(layers, **options)
    with fused_calls() as calls:
        assert_equal(reference, module, x_grad=x_grad)
    assert calls == expected


CHECKPOINTS = {
    "not reentrant": lambda module, x: checkpoint(module, x, use_reentrant=False),
    "reentrant": lambda module, x: checkpoint(module, x, use_reentrant=True),
}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpointed(kind, dropout):
    assert_equal(*pair(lora_dropout=dropout), CHECKPOINTS[kind])


def test_what_the_first_run_fused_the_second_fuses_too():
    """A hook that comes in between is called in the recomputation, and each group keeps its own choice."""
    reference, module = pair(lora_dropout=0.4)
    calls = []

    def call(module, x):
        y = CHECKPOINTS["not reentrant"](module, x)
        module.c_proj.register_forward_hook(lambda *_: calls.append("hook"))
        return y

    assert_equal(reference, module, call)
    assert calls == ["hook"] * 2


def test_compiled_without_a_graph_break():
    torch.compiler.reset()
    reference, module = (nn.Sequential(one) for one in pair())
    compiled = {id(one): torch.compile(one, fullgraph=True, backend="aot_eager") for one in (reference, module)}
    with fused_calls() as calls:
        assert_equal(reference, module, lambda one, x: compiled[id(one)](x))
    assert set(calls) == {"lora_projections"}


@pytest.mark.parametrize("layer", ["k_proj", "v_proj", "b_proj"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_hooks_are_called_in_order_and_the_others_of_the_group_run_alone(layer, dropout):
    reference, module = pair(lora_dropout=dropout)
    logs = []
    for one in (reference, module):
        log = []
        for name in ("q_proj", layer):
            getattr(one, name).register_forward_hook(lambda *_, log=log, name=name: log.append(name))
        logs.append(log)
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert logs[0] == logs[1] == ["q_proj", layer]
    alone = ["lora_linear"] * (2 if layer == "b_proj" else 1)
    assert calls == (["lora_projections", *alone] if layer == "b_proj" else [*alone, "lora_projections"])


def test_an_error_of_a_layer_is_upstreams():
    """What fails in between leaves the layers before it called, and those after it not."""
    logs = []
    for one in pair():
        log = []
        for name in LAYERS:
            getattr(one, name).register_forward_hook(lambda *_, log=log, name=name: log.append(name))
        one.b_proj.base_layer.weight = nn.Parameter(torch.zeros(12, 5))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            one(torch.randn(2, 8))
        logs.append(log)
    assert logs[0] == logs[1] == ["q_proj", "k_proj", "v_proj", "a_proj"]


@pytest.mark.parametrize("state", ["eval", "no_grad", "disabled", "merged", "deepcopy"])
def test_states(state):
    reference, module = pair(lora_dropout=0.4)
    if state == "deepcopy":
        module = copy.deepcopy(module)
    layers = [layer for one in (reference, module) for layer in one.modules() if hasattr(layer, "merge")]
    for one in (reference, module):
        one.train(state in ("no_grad", "deepcopy"))
    for layer in layers:
        if state == "disabled":
            layer.enable_adapters(False)
        elif state == "merged":
            layer.merge()
    if state in ("eval", "deepcopy"):
        assert_equal(reference, module)
        return
    x, outputs = torch.randn(3, 8), []
    for one in (reference, module):
        torch.manual_seed(1)
        with torch.set_grad_enabled(state != "no_grad"):
            outputs.append(one(x))
    torch.testing.assert_close(*outputs)


def test_rows():
    _, module = pair()
    block = derive(Cross)
    rows = list(rows_of(Candidate("m", module, block.parts, block), vars(type(module))[PATCH]))
    assert [(row.module_class, row.part, row.level, row.layers) for row in rows] == [
        ("Cross.k_proj, v_proj", "linear", "fused", ("k_proj", "v_proj")),
        ("Cross.a_proj, b_proj, c_proj", "linear", "fused", ("a_proj", "b_proj", "c_proj")),
    ]
    module.c_proj.register_forward_hook(lambda *_: None)
    rows = list(rows_of(Candidate("m", module, block.parts, block), vars(type(module))[PATCH]))
    assert [row.level for row in rows] == ["fused", "alone"]
    assert rows[1].reason == "c_proj: a forward hook is registered on it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_fewer_operations_than_alone_and_nothing_more_is_kept(dtype, dropout):
    """Two layers and more: the A's are one product, x is cast once, and dx is summed where it is made."""
    group = nn.ModuleList([nn.Linear(16, 24) for _ in range(3)])
    config = peft.LoraConfig(r=2, target_modules=["0", "1", "2"], init_lora_weights=False, lora_dropout=dropout)
    layers = peft.inject_adapter_in_model(config, group).to(dtype)
    for name, parameter in layers.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # as PEFT has them over a bfloat16 base
    together = make_apply_shared("peft")
    x = torch.randn(4, 16, dtype=dtype, requires_grad=True)

    def loss(*groups):
        return sum(y.float().sum() for group in groups for y in together(None, x, *group))

    ways = [(layers,), tuple([layer] for layer in layers)]
    ops = [count_ops(lambda way=way: loss(*way).backward()).compute_ops for way in ways]
    kept = [saved_bytes(lambda way=way: loss(*way), exclude=[layers, x]) for way in ways]
    assert ops[0] < ops[1]
    assert kept[0] <= kept[1]
