"""The blocks whose costs are counted compute what PEFT's do, and are fused."""

from __future__ import annotations

import pytest
import torch

from patchkit.testing import fused_calls, relative_error
from patchkit.testing.block_costs import BLOCK_PRECISIONS, LAYER, RANK, TIMED_PARTS, TOKENS, block_pair
from patchkit_kernels.lora import straight_saving
from patchkit_kernels.ops import dropout_once


@pytest.mark.parametrize("part", TIMED_PARTS)
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
    assert (none, fused) == (0, 6 if part == LAYER else 2)
    for wanted, y in zip(expected, outputs, strict=True):
        assert relative_error(y, wanted) < 1e-5
    if not dropout:  # each call draws anew
        assert relative_error(ours, gradient) < 1e-5


OPS = {
    "float32": (0.56, 0.78),
    "bfloat16 base, float32 adapters": (0.60, 0.75),
    "the same under autocast": (0.56, 0.90),
    "bfloat16": (0.56, 0.78),
    "float32 under autocast": (0.79, 0.95),
}
"""The greatest part of PEFT's operations that a layer's blocks may take, without dropout and with it."""


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", OPS)
def test_costs_of_a_layer(precision, dropout, packed, monkeypatch):
    """Operations as said above, the FLOPs that the mathematics needs, and nothing kept but what is read."""
    if packed:
        monkeypatch.setattr(dropout_once, "UNPACKED", 0)
    dtypes = BLOCK_PRECISIONS[precision]
    inner, lora = dtypes.autocast or dtypes.base, dtypes.autocast or dtypes.lora
    ops = [0, 0]
    for part, (inputs, projected, count) in {"qkv": (64, 0, 3), "o": (64, 0, 1), "mlp": (64, 2 * 112, 3)}.items():
        plain, patched = (block.cost() for block in block_pair(part, dtypes, dropout=dropout))
        ops = [before + cost.compute_ops for before, cost in zip(ops, (plain, patched), strict=True)]
        assert patched.flops == plain.flops
        read = TOKENS * (inputs * dtypes.base.itemsize + projected * inner.itemsize + count * RANK * lora.itemsize)
        if inner.itemsize < dtypes.base.itemsize:  # a copy of every W, where the rows are few
            read += inner.itemsize * 64 * (3 * 112 if part == "mlp" else 64 + (count - 1) * 32)
        dropped = TOKENS * (inputs * count + (112 - 64) * (part == "mlp")) if dropout else 0
        # In bits, also of inputs as small as these: bytes are counted by hooks, where no mask is kept in another form.
        assert patched.bytes_kept == read + dropped // 8 <= plain.bytes_kept
    assert ops[1] <= OPS[precision][bool(dropout)] * ops[0]


@pytest.mark.parametrize("part", ["qkv", "o", "mlp"])
def test_no_copy_of_a_weight_is_kept_of_many_rows(part, monkeypatch):
    """It is made again in backward, to the same bits."""
    dtypes, found = BLOCK_PRECISIONS["float32 under autocast"], []
    monkeypatch.setattr(straight_saving, "FEW_STACKED", 0)  # else these are kept of few rows too
    for most in (TOKENS, TOKENS - 1):
        monkeypatch.setattr(straight_saving, "FEW_ROWS", most)
        _, patched = block_pair(part, dtypes)
        cost = patched.cost()
        patched.step()
        found.append((cost.bytes_kept, cost.compute_ops, patched.x.grad))
    (kept, few_ops, few), (without, many_ops, many) = found
    weights = {"qkv": (64, 32, 32), "o": (64,), "mlp": (112, 112, 112)}[part]
    assert kept - without == 2 * 64 * sum(weights)
    assert many_ops - few_ops == len(weights)
    assert torch.equal(few, many)


def test_every_precision_is_counted():
    assert OPS.keys() == BLOCK_PRECISIONS.keys()
