"""The blocks whose costs are counted compute what PEFT's do, and are fused."""

from __future__ import annotations

import pytest
import torch

from patchkit.testing import fused_calls, relative_error
from patchkit.testing.block_costs import BLOCK_PARTS, BLOCK_PRECISIONS, block_pair


@pytest.mark.parametrize("part", BLOCK_PARTS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_pair_computes_the_same_and_one_of_it_is_fused(part, dropout):
    plain, patched = block_pair(part, BLOCK_PRECISIONS["float32"], dropout=dropout)
    found = []
    for block in (plain, patched):
        torch.manual_seed(0)
        with fused_calls() as calls:
            outputs = block.forward()
            block.step()
        found.append((outputs, block.x.grad, len(calls)))
    (expected, gradient, none), (outputs, ours, fused) = found
    assert (none, fused) == (0, 2)
    for wanted, y in zip(expected, outputs, strict=True):
        assert relative_error(y, wanted) < 1e-5
    if not dropout:  # each call draws anew
        assert relative_error(ours, gradient) < 1e-5


@pytest.mark.parametrize("precision", BLOCK_PRECISIONS)
def test_costs_are_of_the_precision(precision):
    plain, patched = (block.cost() for block in block_pair("qkv", BLOCK_PRECISIONS[precision]))
    assert plain.flops <= patched.flops <= 1.07 * plain.flops  # t may be made again
    assert patched.bytes_kept < plain.bytes_kept
