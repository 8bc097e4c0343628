"""The blocks whose costs are counted compute what PEFT's do, and are fused."""

from __future__ import annotations

import pytest
import torch

from patchkit.testing import fused_calls, relative_error
from patchkit.testing.block_costs import BLOCK_PARTS, BLOCK_PRECISIONS, RANK, TOKENS, block_pair


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


OPS = {
    "float32": (0.60, 0.90),
    "bfloat16 base, float32 adapters": (0.70, 0.88),
    "the same under autocast": (0.60, 0.98),
    "bfloat16": (0.60, 0.90),
    "float32 under autocast": (0.88, 1.07),
}
"""The greatest part of PEFT's operations that a layer's blocks may take, without dropout and with it."""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", OPS)
def test_costs_of_a_layer(precision, dropout):
    """Operations as said above, the FLOPs that the mathematics needs, and nothing kept but what is read."""
    dtypes = BLOCK_PRECISIONS[precision]
    inner, lora = dtypes.autocast or dtypes.base, dtypes.autocast or dtypes.lora
    ops = [0, 0]
    for part, (inputs, projected, count) in {"qkv": (64, 0, 3), "o": (64, 0, 1), "mlp": (64, 2 * 112, 3)}.items():
        plain, patched = (block.cost() for block in block_pair(part, dtypes, dropout=dropout))
        ops = [before + cost.compute_ops for before, cost in zip(ops, (plain, patched), strict=True)]
        assert patched.flops == plain.flops
        read = TOKENS * (inputs * dtypes.base.itemsize + projected * inner.itemsize + count * RANK * lora.itemsize)
        bits = TOKENS * (inputs * count + (112 - 64) * (part == "mlp")) // 8 if dropout else 0
        assert patched.bytes_kept == read + bits <= plain.bytes_kept
    assert ops[1] <= OPS[precision][bool(dropout)] * ops[0]


def test_every_precision_is_counted():
    assert OPS.keys() == BLOCK_PRECISIONS.keys()
