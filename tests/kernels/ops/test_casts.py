"""Casts in few bytecodes."""

from __future__ import annotations

import itertools

import pytest
import torch

from patchkit_kernels.ops.casts import cast, cast_one

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("given", "wanted"), itertools.product(DTYPES, DTYPES), ids=str)
def test_as_to_casts(given, wanted):
    x = torch.randn(3, 4).to(given)
    assert torch.equal(cast_one(x, wanted), x.to(wanted))
    assert cast_one(x, wanted).dtype is wanted
    assert (cast_one(x, wanted) is x) == (given is wanted)


@pytest.mark.parametrize("wanted", DTYPES, ids=str)
def test_several_are_cast_or_none(wanted):
    several = [torch.randn(2, 2), torch.randn(3)]
    found = cast(several, wanted)
    assert (found is several) == (wanted is torch.float32)
    assert all(torch.equal(one, other.to(wanted)) for one, other in zip(found, several, strict=True))
