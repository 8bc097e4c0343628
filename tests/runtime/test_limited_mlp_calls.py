"""A gated MLP with a limit in a module: fused, or module by module, with whatever the limit is at the time of the call."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from trained_modules import assert_equal

from patchkit.arch.spec import GatedMLP
from patchkit.binding.classes import patched_class
from patchkit.binding.swap import swap
from patchkit.derivation.derive import derive
from patchkit.module_tree import PATCH
from patchkit.planning.levels import rows_of
from patchkit.planning.survey import Candidate
from patchkit.testing import randomise_adapter
from patchkit.testing.fused_calls import fused_calls


class Limited(nn.Module):
    def __init__(self, limit, activation):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.act_fn, self.limit = activation, limit

    def forward(self, x):
        gate = self.gate_proj(x).clamp(max=self.limit)
        up = self.up_proj(x).clamp(min=-self.limit, max=self.limit)
        return self.down_proj(self.act_fn(gate) * up)


def pair(limit=0.3, activation=nn.SiLU, **options):
    """A module with adapters, and the same one patched."""
    torch.manual_seed(0)
    targets = ["gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **options)
    module = peft.inject_adapter_in_model(config, Limited(limit, activation())).double()
    randomise_adapter(module)
    patched = copy.deepcopy(module)
    block = derive(Limited)
    assert block == GatedMLP("Limited", limit="limit")
    target = patched_class(Limited, block, frozenset({"mlp"}))
    assert isinstance(target, type), target
    swap([(patched, target)])
    return module.train(), patched.train()


def row(module):
    block = derive(Limited)
    (found,) = rows_of(Candidate("", module, block.parts, block), vars(type(module))[PATCH])
    return found.level, found.reason


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.4}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("limit", [0.3, 1, 0, float("inf")])
def test_equal_and_fused(limit, options):
    reference, module = pair(limit, **options)
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert calls == ["lora_gated_mlp"]
    assert row(module) == ("fused", "")


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (-0.3, "clamp of gate and up: its limit is -0.3"),
        (float("nan"), "clamp of gate and up: its limit is nan"),
        (torch.tensor(0.3, dtype=torch.float64), "clamp of gate and up: its limit is a Tensor"),
        (True, "clamp of gate and up: its limit is a bool"),
    ],
    ids=str,
)
def test_any_other_limit_is_upstreams_concern(limit, reason):
    reference, module = pair(limit)
    with fused_calls() as calls:
        found = [one(torch.ones(2, 8, dtype=torch.float64)) for one in (reference, module)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-11, equal_nan=True)
    assert calls == ["lora_linear"] * 3
    assert row(module) == ("alone", reason)


@pytest.mark.parametrize("limit", [None, "none"])
def test_what_is_no_limit_is_upstreams_error(limit):
    errors = []
    for one in pair(limit):
        with pytest.raises((TypeError, RuntimeError)) as raised:
            one(torch.ones(2, 8, dtype=torch.float64))
        errors.append((type(raised.value), str(raised.value)))
    assert errors[0] == errors[1]


def test_a_limit_counts_at_the_next_call():
    reference, module = pair()
    for limit in (0.1, 3.0):
        reference.limit = module.limit = limit
        assert_equal(reference, module)


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "act_fn", "down_proj"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_hooks_are_called(part, dropout):
    reference, module = pair(lora_dropout=dropout)
    logs = []
    for one in (reference, module):
        log = []
        getattr(one, part).register_forward_hook(lambda *_, log=log: log.append(part))
        logs.append(log)
    assert_equal(reference, module)
    assert logs[0] == logs[1] == [part]
    assert row(module)[0] == "alone"


@pytest.mark.parametrize("activation", [nn.GELU, nn.Mish, nn.RReLU])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed(activation, reentrant):
    assert_equal(*pair(activation=activation), lambda module, x: checkpoint(module, x, use_reentrant=reentrant))


def test_compiled_without_a_graph_break():
    torch.compiler.reset()
    reference, module = (nn.Sequential(one) for one in pair())
    compiled = {id(one): torch.compile(one, fullgraph=True, backend="aot_eager") for one in (reference, module)}
    with fused_calls() as calls:
        assert_equal(reference, module, lambda one, x: compiled[id(one)](x))
    assert set(calls) == {"lora_gated_mlp"}
