"""Forms of gated MLPs that the built-in architectures do not use: one joint projection, up before gate.

Fused, and with an activation that is not, where every module is called alone: in upstream's order, with the same draws.
"""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

from patchkit.arch.spec import GatedMLP
from patchkit.binding.classes import patched_class
from patchkit.binding.swap import swap
from patchkit.module_tree import PATCH
from patchkit.planning.levels import rows_of
from patchkit.planning.survey import Candidate
from patchkit.testing import randomise_adapter


class _Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 12, bias=False), nn.Linear(8, 12)
        self.gate_up_proj, self.down_proj, self.act_fn = nn.Linear(8, 24), nn.Linear(12, 8), nn.SiLU()


class JointMLP(_Parts):
    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.act_fn(gate))


class JointUpFirstMLP(_Parts):
    def forward(self, x):
        up, gate = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


class GateUpActivationMLP(_Parts):
    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(self.act_fn(gate) * up)


class UpFirstMLP(_Parts):
    def forward(self, x):
        return self.down_proj(self.up_proj(x) * self.act_fn(self.gate_proj(x)))


class UpTemporaryFirstMLP(_Parts):
    def forward(self, x):
        up = self.up_proj(x)
        hidden = self.act_fn(self.gate_proj(x))
        return self.down_proj(hidden * up)


class ActivationTemporaryMLP(_Parts):
    def forward(self, x):
        hidden = self.act_fn(self.gate_proj(x))
        hidden = self.up_proj(x) * hidden
        return self.down_proj(hidden)


class UsualMLP(_Parts):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


JOINT = {"gate_up": "gate_up_proj"}
CLASSES = {
    JointMLP: JOINT,
    JointUpFirstMLP: JOINT,
    UpFirstMLP: {},
    GateUpActivationMLP: {},
    UpTemporaryFirstMLP: {},
    ActivationTemporaryMLP: {},
    UsualMLP: {},
}


DRAWING = {
    "rrelu": nn.RReLU,
    "dropout inside": lambda: nn.Sequential(nn.SiLU(), nn.Dropout(0.4)),
    "dropout before": lambda: nn.Sequential(nn.Dropout(0.4), nn.GELU()),
}
ACTIVATIONS = {"silu": nn.SiLU, "mish": nn.Mish, **DRAWING}


def make(cls, activation, dropout):
    """A module with adapters on every projection, or without any where ``dropout`` is None; and its block."""
    block = GatedMLP(cls.__name__, **CLASSES[cls])
    torch.manual_seed(0)
    module = cls()
    module.act_fn = ACTIVATIONS[activation]()
    if dropout is not None:
        targets = list(block.projections())
        config = peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=targets, lora_dropout=dropout, init_lora_weights=False
        )
        module = peft.inject_adapter_in_model(config, module)
        randomise_adapter(module)
    return module.train(), block


def patch(module, cls, block):
    """Patch a module; the level that the report says."""
    target = patched_class(cls, block, frozenset(block.parts))
    swap([(module, target)])
    (row,) = rows_of(Candidate("", module, block.parts, block), vars(target)[PATCH])
    return row.level


@pytest.mark.parametrize("dropout", [None, 0.0, 0.4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_form_is_equal(cls, dropout, activation):
    module, block = make(cls, activation, dropout)
    reference = copy.deepcopy(module)
    level = "fused" if activation == "silu" else "upstream" if dropout is None else "alone"
    assert patch(module, cls, block) == level
    x = torch.randn(5, 8)
    found = []
    for mlp in (reference, module):
        own = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = mlp(own)
        y.square().sum().backward()
        found.append([y.detach(), own.grad, *(p.grad for p in mlp.parameters())])
        found[-1].append(torch.rand(3))  # as many draws
    for expected, actual in zip(*found, strict=True):
        assert (expected is None) == (actual is None)
        assert expected is None or (expected - actual).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("dropout", [None, 0.4])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_hooks_fire_in_upstreams_order(cls, dropout):
    """Every module of the block has a hook before and after it, so each is called, and none is fused."""
    module, block = make(cls, "silu", dropout)
    reference = copy.deepcopy(module)
    patch(module, cls, block)
    logs = []
    for mlp in (reference, module):
        log = []
        for name in (*block.inputs, block.activation, block.down):
            part = getattr(mlp, name)
            part.register_forward_pre_hook(lambda *_, name=name, log=log: log.append(f"before {name}"))
            part.register_forward_hook(lambda *_, name=name, log=log: log.append(f"after {name}"))
        mlp(torch.randn(5, 8))
        logs.append(log)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2 * (len(block.inputs) + 2)
