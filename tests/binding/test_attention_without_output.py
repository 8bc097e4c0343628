"""An attention whose output projection stands in another class: query, key and value are fused, and nothing else."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchkit.arch.spec import Attention
from patchkit.binding.classes import patched_class
from patchkit.binding.swap import swap
from patchkit.derivation.derive import derive
from patchkit.module_tree import PATCH
from patchkit.planning.levels import rows_of
from patchkit.planning.survey import Candidate
from patchkit.testing import randomise_adapter


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 12), nn.Linear(8, 12)
        self.value = nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query(x)
        key = self.key(x)
        value = self.value(x)
        return F.scaled_dot_product_attention(query, key, value)


def test_it_is_derived() -> None:
    assert derive(SelfAttention) == Attention("SelfAttention", "query", "key", "value", None)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_query_key_and_value_are_fused(dropout: float) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3, target_modules=["query", "key", "value"], lora_dropout=dropout, init_lora_weights=False
    )
    reference = peft.inject_adapter_in_model(config, SelfAttention()).double().train()
    randomise_adapter(reference)
    module = copy.deepcopy(reference)
    block = derive(SelfAttention)
    assert not isinstance(block, str)
    target = patched_class(SelfAttention, block, frozenset(block.parts))
    assert isinstance(target, type)
    swap([(module, target)])
    assert [
        (row.part, row.level) for row in rows_of(Candidate("", module, block.parts, block), vars(target)[PATCH])
    ] == [("qkv", "fused")]
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    found = []
    for attention in (reference, module):
        own = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = attention(own)
        y.square().sum().backward()
        found.append(
            [y.detach(), own.grad, *(p.grad for p in attention.parameters() if p.requires_grad), torch.rand(3)]
        )
    for expected, actual in zip(*found, strict=True):
        assert (expected - actual).norm() <= 1e-11 * expected.norm()
