"""A projection of a block is called by its block or patched where it stands: one of the two, whatever was asked before."""

from __future__ import annotations

import copy
import itertools

import pytest
from peft.tuners import lora
from torch import nn
from transformers.models.llama import modeling_llama

import patchkit
from patchkit.binding.patch import patch_of
from patchkit.testing import add_lora, compare_runs, fused_calls, run, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")

PROJECTIONS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def reads_input_twice(self, x):
    """A source that no rule takes."""
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(1.0 * x))


def llama(refused=(), targets=None):
    model = add_lora(tiny_model("llama"), target_modules=list(targets or itertools.chain(*PROJECTIONS.values())))
    for module in model.modules():
        if "mlp" in refused and type(module) is modeling_llama.LlamaMLP:
            module.__class__ = type("LlamaMLP", (modeling_llama.LlamaMLP,), {"forward": reads_input_twice})
    return model


def patched_where_they_stand(model):
    """The names of the linear layers that have a patched class."""
    names = {
        name.rpartition(".")[2] for name, one in model.named_modules() if isinstance(one, lora.Linear) and patch_of(one)
    }
    return {part for part, projections in PROJECTIONS.items() if names >= set(projections)}


def levels(report):
    return {row.part: row.level for row in report.rows}


@pytest.mark.parametrize("off", [(), ("qkv",), ("o",), ("mlp",), ("qkv", "o", "mlp")], ids=str)
@pytest.mark.parametrize("linear", [True, False])
def test_what_a_block_holds_or_leaves_on_request_is_not_patched_twice(off, linear):
    model = llama()
    report = patchkit.apply(model, linear=linear, **dict.fromkeys(off, False))
    assert levels(report) == {part: "upstream" if part in off else "fused" for part in PROJECTIONS}
    assert patched_where_they_stand(model) == set()


@pytest.mark.parametrize("linear", [True, False])
def test_a_block_that_is_refused_leaves_its_layers_where_they_stand(linear):
    reference = llama(refused=["mlp"])
    model = copy.deepcopy(reference)
    report = patchkit.apply(model, linear=linear)
    assert levels(report) == {"qkv": "fused", "o": "fused", "mlp": "alone" if linear else "upstream"}
    assert patched_where_they_stand(model) == ({"mlp"} if linear else set())
    (reason,) = {row.reason for row in report.rows if row.part == "mlp"}
    assert reason
    assert patchkit.report(model) == report
    inputs = tiny_inputs("llama", model)
    with fused_calls() as calls:
        assert compare_runs(run(reference, inputs), run(model, inputs)).passed
    assert calls.count("lora_linear") == (2 + 6 if linear else 2)


def test_a_layer_goes_from_its_own_class_to_its_block_and_back():
    """Less trust, then more, then less again: no class is left over from before."""
    model = llama()
    original = [type(module) for module in model.modules()]
    owned = type("Owned", (modeling_llama.LlamaMLP,), {"forward": reads_input_twice})
    mlps = [module for module in model.modules() if type(module) is modeling_llama.LlamaMLP]
    for _ in range(2):
        assert levels(patchkit.apply(model))["mlp"] == "fused"
        assert patched_where_they_stand(model) == set()
        patchkit.revert(model)
        for mlp in mlps:
            mlp.__class__ = owned
        assert levels(patchkit.apply(model))["mlp"] == "alone"
        assert patched_where_they_stand(model) == {"mlp"}
        for mlp in mlps:
            mlp.__class__ = modeling_llama.LlamaMLP
    patchkit.apply(model)
    assert patched_where_they_stand(model) == set()
    patchkit.revert(model)
    assert [type(module) for module in model.modules()] == original


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "down_proj"), ("gate_proj",)], ids=str)
def test_only_layers_with_an_adapter_are_patched(targets):
    model = llama(refused=["mlp"], targets=targets)
    patchkit.apply(model)
    layers = [
        name.rpartition(".")[2] for name, one in model.named_modules() if patch_of(one) and isinstance(one, nn.Module)
    ]
    assert {name for name in layers if name.endswith("_proj")} == set(targets) & set(PROJECTIONS["mlp"])
