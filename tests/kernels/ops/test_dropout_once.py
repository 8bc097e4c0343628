"""Dropout that is drawn once: the numbers, the draws and the masks of ``F.dropout``, whatever way they are packed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.ops import dropout_once
from patchkit_kernels.ops.dropout import pack_mask
from patchkit_kernels.ops.dropout_in_pieces import draws_in_pieces
from patchkit_kernels.ops.dropout_once import (
    SMALL,
    draws_together,
    drop,
    drop_together,
    factors_of,
    factors_together,
    scale_left,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {
    "contiguous": lambda dtype: torch.randn(2, 6, 8).to(dtype),
    "no whole byte": lambda dtype: torch.randn(3, 5, 7).to(dtype),
    "transposed": lambda dtype: torch.randn(8, 6, 2).to(dtype).permute(2, 1, 0),
    "sliced": lambda dtype: torch.randn(2, 6, 16).to(dtype)[..., ::2],
    "expanded": lambda dtype: torch.randn(1, 6, 8).to(dtype).expand(2, 6, 8),
    "empty": lambda dtype: torch.randn(0, 8).to(dtype),
    "vector": lambda dtype: torch.randn(9).to(dtype),
}


class Nothing(TorchDispatchMode):
    """Sees the operations and changes none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("in_mode", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drawn_as_torch_draws(dtype, layout, p, in_mode):
    x = LAYOUTS[layout](dtype)
    torch.manual_seed(3)
    expected, after = F.dropout(x, p), torch.rand(2)
    torch.manual_seed(3)
    mask = F.dropout(torch.ones_like(x), p) != 0
    torch.manual_seed(3)
    if in_mode:
        with Nothing():
            dropped, packed = drop(x, p)
    else:
        dropped, packed = drop(x, p)
    assert torch.equal(torch.rand(2), after)
    assert torch.equal(packed, pack_mask(mask))
    assert (dropped.shape, dropped.dtype) == (expected.shape, dtype)
    # In a mode a packed mask is applied, whose factor may differ in the last place.
    tolerance = 2 * torch.finfo(dtype).eps if in_mode else 0.0
    assert torch.allclose(dropped, expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("columns", [8, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_applied_again(dtype, columns, p):
    """To x it gives what was given before; in another dtype it is exact, and the scale is left."""
    x = torch.randn(6, columns).to(dtype)
    dropped, packed = drop(x, p)
    assert torch.equal(x * factors_of(packed, p, 6, columns, dtype, dtype), dropped)
    assert scale_left(p, dtype, dtype) == 1.0
    for other in set(DTYPES) - {dtype}:
        part = torch.randn(6, columns).to(other)
        factors = factors_of(packed, p, 6, columns, other, dtype)
        assert factors.dtype == other
        assert torch.equal(part * factors, torch.where(dropped != 0, part, torch.zeros_like(part)))
        assert scale_left(p, other, dtype) == 1 / (1 - p)
    with Nothing():
        assert factors_of(packed, p, 6, columns, dtype, dtype) is None


ONE_AFTER_THE_OTHER = {1: [0.3], 3: [0.3, 0.3, 0.3]}


@pytest.mark.parametrize("most", [47, 48], ids=["packed", "unpacked"])
@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("count", ONE_AFTER_THE_OTHER)
@pytest.mark.parametrize("read", DTYPES, ids=str)
@pytest.mark.parametrize("drawn", DTYPES, ids=str)
def test_masks_drawn_together_are_those_drawn_in_turn(drawn, read, count, in_pieces, most, monkeypatch):
    """Bit for bit, and the generator is left as it is then: whether or not a CPU draws the same in pieces."""
    monkeypatch.setattr(dropout_once, "UNPACKED", most)
    if in_pieces and not draws_in_pieces(drawn):
        pytest.skip("this CPU draws otherwise in pieces")
    monkeypatch.setattr(dropout_once, "draws_in_pieces", lambda dtype: in_pieces)
    x, probabilities = torch.randn(6, 8).to(drawn), ONE_AFTER_THE_OTHER[count]
    p = probabilities[0]
    torch.manual_seed(3)
    expected, after = [F.dropout(x, p) for p in probabilities], torch.rand(2)
    torch.manual_seed(3)
    apart = [drop(x, p)[1] for p in probabilities]
    torch.manual_seed(3)
    assert draws_together(x.to(read), probabilities)
    dropped, packed = drop_together(x.to(read), probabilities, drawn)
    assert torch.equal(torch.rand(2), after)
    assert dropped.dtype == read
    if read is drawn:
        assert torch.equal(dropped.view(count, 6, 8), torch.stack(expected))
    else:
        kept = torch.stack(expected) != 0
        assert torch.equal(dropped.view(count, 6, 8), torch.where(kept, x.to(read), torch.zeros((), dtype=read)))
    factors = factors_together(packed, p, count, 6, 8, read, drawn)
    if most == x.numel():
        assert factors is packed
        assert factors_of(packed, p, 6, 8, read, drawn) is packed
        packed = torch.cat([pack_mask(one != 0) for one in packed.view(count, 6, 8)])
    assert torch.equal(packed, torch.cat(apart))
    assert factors.dtype == read
    assert torch.equal(factors.view(count, 6, 8) * x.to(read), dropped.view(count, 6, 8))


def test_infinities_and_signs_are_those_of_a_product_with_the_mask():
    x = torch.tensor([[float("inf"), -0.0, float("nan"), -1.0] * 16])
    torch.manual_seed(3)
    expected = F.dropout(x, 0.5)
    torch.manual_seed(3)
    dropped, _ = drop_together(x, [0.5], x.dtype)
    assert torch.equal(dropped.isnan(), expected.isnan())
    assert torch.equal(dropped.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(dropped.signbit(), expected.signbit())


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"contiguous"}))
def test_what_is_not_simple_is_drawn_in_turn(layout):
    assert not draws_together(LAYOUTS[layout](torch.float32), [0.3, 0.3])


def test_nor_is_what_is_large_or_of_several_probabilities_or_in_a_mode():
    assert draws_together(torch.ones(8, SMALL // 8), [0.3])
    assert not draws_together(torch.ones(8, SMALL // 8 + 1), [0.3])
    assert not draws_together(torch.ones(1, 8), [0.3, 0.2])
    assert not draws_together(torch.ones(1, 8), [0.3, 0.3, 0.2])
    with Nothing():
        assert not draws_together(torch.ones(1, 8), [0.3])
