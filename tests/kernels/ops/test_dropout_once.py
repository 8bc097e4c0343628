"""Dropout that is drawn once: the numbers, the draws and the masks of ``F.dropout``, whatever way they are packed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.ops.dropout import pack_mask
from patchkit_kernels.ops.dropout_once import drop, drop_again, factors_of

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
    """To x it gives what was given before; to another tensor of its shape, in that tensor's dtype."""
    x = torch.randn(6, columns).to(dtype)
    dropped, packed = drop(x, p)
    factors = factors_of(packed, p, 6, columns, dtype)
    assert torch.equal(drop_again(x, packed, p, factors), dropped)
    for other in DTYPES:
        part = torch.randn(6, columns).to(other)
        found = drop_again(part, packed, p, factors)
        assert found.dtype == other
        wanted = part.double() * (dropped != 0) / (1 - p)
        assert torch.allclose(found.double(), wanted, rtol=4 * max(torch.finfo(d).eps for d in (dtype, other)))
    with Nothing():
        assert factors_of(packed, p, 6, columns, dtype) is None
        found = drop_again(x, packed, p, None)
    assert torch.allclose(found, dropped, rtol=2 * torch.finfo(dtype).eps, atol=0.0)
