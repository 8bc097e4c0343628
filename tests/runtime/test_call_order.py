"""Query, key and value are called, and draw, in the order of the source, at every level."""

from __future__ import annotations

import copy
import itertools

import peft
import pytest
import torch
from torch import nn

from patchkit.arch.spec import Attention
from patchkit.binding.classes import patched_class
from patchkit.binding.swap import swap
from patchkit.module_tree import PATCH
from patchkit.planning.levels import rows_of
from patchkit.planning.survey import Candidate
from patchkit.testing import randomise_adapter

NAMES = ("q_proj", "k_proj", "v_proj")


class _Parts(nn.Module):
    def __init__(self):
        super().__init__()
        for name in (*NAMES, "o_proj"):
            setattr(self, name, nn.Linear(8, 8))


class QKV(_Parts):
    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(q * k.sigmoid() + v)


class QVK(_Parts):
    def forward(self, x):
        q, v = self.q_proj(x), self.v_proj(x)
        k = self.k_proj(x)
        return self.o_proj(q * k.sigmoid() + v)


class KQV(_Parts):
    def forward(self, x):
        k = self.k_proj(x)
        q = self.q_proj(x).view(x.shape)
        v = self.v_proj(x)
        return self.o_proj(q * k.sigmoid() + v)


class KVQ(_Parts):
    def forward(self, x):
        k, v, q = self.k_proj(x), self.v_proj(x), self.q_proj(x)
        return self.o_proj(q * k.sigmoid() + v)


class VQK(_Parts):
    def forward(self, x):
        v, q = self.v_proj(x), self.q_proj(x)
        k = self.k_proj(x)
        return self.o_proj(q * k.sigmoid() + v)


class VKQ(_Parts):
    def forward(self, x):
        v = self.v_proj(x)
        k = self.k_proj(x).view(x.shape)
        q = self.q_proj(x)
        return self.o_proj(q * k.sigmoid() + v)


ORDERS = {"".join(name[0] for name in order).upper(): order for order in itertools.permutations(NAMES)}
CLASSES = {cls: ORDERS[cls.__name__] for cls in (QKV, QVK, KQV, KVQ, VQK, VKQ)}


def pair(cls):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=[*NAMES, "o_proj"], lora_dropout=0.4, init_lora_weights=False
    )
    module = peft.inject_adapter_in_model(config, cls()).train()
    randomise_adapter(module)
    reference, block = copy.deepcopy(module), Attention(cls.__name__)
    target = patched_class(cls, block, frozenset(block.parts))
    assert [site.calls for site in vars(target)[PATCH].sites if site.part == "qkv"] == [CLASSES[cls]]
    swap([(module, target)])
    return reference, module, block


def level(module, block):
    rows = rows_of(Candidate("", module, block.parts, block), vars(type(module))[PATCH])
    return {row.level for row in rows if row.part == "qkv"}


@pytest.mark.parametrize("hooked", [(), ("q_proj",), ("k_proj",), ("v_proj",), NAMES], ids=str)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_draws_come_in_upstreams_order(cls, hooked):
    """A hooked projection runs upstream's code and the others alone: the masks are those of upstream all the same."""
    reference, module, block = pair(cls)
    logs = {}
    for attention in (reference, module):
        log = logs[attention] = []
        for name in hooked:
            getattr(attention, name).register_forward_hook(lambda *_, name=name, log=log: log.append(name))
    assert level(module, block) == ({"upstream"} if hooked == NAMES else {"alone"} if hooked else {"fused"})
    x = torch.randn(5, 8)
    found = []
    for attention in (reference, module):
        own = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = attention(own)
        y.square().sum().backward()
        found.append([y.detach(), own.grad, *(p.grad for p in attention.parameters() if p.grad is not None)])
        found[-1].append(torch.rand(3))  # as many draws
    assert len(found[0]) == len(found[1])
    for expected, actual in zip(*found, strict=True):
        assert (expected - actual).norm() <= 1e-5 * expected.norm()
    assert logs[reference] == logs[module] == [name for name in CLASSES[cls] if name in hooked]
