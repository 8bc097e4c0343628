"""Products of matrices that are scaled or added up without a buffer more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.ops.addmm import addmm_


def scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """``s left @ right`` in left's dtype, scaled before it is rounded: beta=0 means that the addend is not read."""
    unread = left.new_empty(())
    return torch.addmm(unread, left, right.to(left.dtype), beta=0, alpha=scaling)


def sum_of_products(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype, total: Tensor | None = None) -> Tensor:
    """The sum of ``left @ right`` over all pairs, in one buffer of the given dtype.

    Args:
        pairs: of matrices; one at least, unless there is a total.
        dtype: of the sum.
        total: a buffer of ours, in this dtype, to which they are added.
    """
    for left, right in pairs:
        if total is None:
            total = (left @ right).to(dtype)
        elif left.dtype == dtype:
            addmm_(total, left, right)
        else:
            # Under autocast, and for float32 adapters over a bfloat16 base: add with type promotion, no extra copy.
            total.add_(left @ right)
    assert total is not None  # narrows the type
    return total


def beside(tensors: Sequence[Tensor]) -> Tensor:
    """Matrices of as many rows, side by side."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)
