"""Rows and back, whatever the strides."""

from __future__ import annotations

import pytest
import torch

from patchkit_kernels.lora.shapes import as_rows, shaped, with_leading


@pytest.mark.parametrize("back", [shaped, with_leading])
@pytest.mark.parametrize("leading", [(6,), (2, 3), (1, 6, 1)], ids=str)
@pytest.mark.parametrize("adjacent", [True, False], ids=["adjacent", "transposed"])
def test_rows_get_the_leading_shape(adjacent, leading, back):
    """A layer that stores its weight in its own way may give rows of any strides."""
    rows = torch.arange(24.0).view(6, 4)
    rows = rows if adjacent else rows.t().contiguous().t()
    like = torch.empty(*leading, 5)
    expected = rows.clone().reshape(*leading, 4)
    with torch.no_grad():
        found = back(rows, like)
    assert found.shape == expected.shape
    assert torch.equal(found, expected)
    assert torch.equal(as_rows(found), expected.reshape(6, 4))
