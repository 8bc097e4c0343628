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
from patchkit.binding import PATCH, parts_of, patched_class, swap
from patchkit.describe import describe
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


class UpFirstMLP(_Parts):
    def forward(self, x):
        return self.down_proj(self.up_proj(x) * self.act_fn(self.gate_proj(x)))


CLASSES = {JointMLP: {"gate_up": "gate_up_proj"}, JointUpFirstMLP: {"gate_up": "gate_up_proj"}, UpFirstMLP: {}}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.Mish])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_form_is_equal(cls, dropout, activation):
    block = GatedMLP(cls.__name__, **CLASSES[cls])
    torch.manual_seed(0)
    module = cls()
    module.act_fn = activation()
    targets = [*block.inputs, block.down]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, lora_dropout=dropout, init_lora_weights=False)
    module = peft.inject_adapter_in_model(config, module).train()
    randomise_adapter(module)
    reference = copy.deepcopy(module)
    target = patched_class(cls, block, frozenset(parts_of(block)))
    swap([(module, target)])
    (row,) = describe("", module, block, vars(target)[PATCH])
    assert row.level == ("fused" if activation is nn.SiLU else "linear")
    x = torch.randn(5, 8)
    found = []
    for mlp in (reference, module):
        own = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = mlp(own)
        y.square().sum().backward()
        found.append([y.detach(), own.grad, *(p.grad for p in mlp.parameters())])
    for expected, actual in zip(*found, strict=True):
        assert (expected is None) == (actual is None)
        assert expected is None or (expected - actual).norm() <= 1e-5 * expected.norm()
