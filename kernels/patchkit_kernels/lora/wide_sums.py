"""Sums in float32 at least, rounded once at the end: over parts of the tokens, and over adapters of one input."""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import present
from patchkit_kernels.ops.casts import cast_one

HAS_WIDE_OUTPUT = torch.version.hip is None
"""Whether ``torch.mm`` of half precision can give float32 on CUDA devices, as torch 2.8 and later can on NVIDIA's."""


class WideSum:
    """A sum of tensors in a dtype that is wide enough; nothing until the first is added."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Add one; it is ours and may be written over."""
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        self.total = wide if self.total is None else self.total.add_(wide)

    def rounded(self, like: Tensor) -> Tensor:
        """The sum in the dtype of a tensor."""
        return present(self.total).to(like.dtype)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in float32 at least: parts in half precision would each be rounded."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda and HAS_WIDE_OUTPUT:  # the product is summed in float32 anyway, and is not rounded then
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def wide_column_sum(rows: Tensor) -> Tensor:
    """The sum over rows ``[tokens, n]``, ``[n]``."""
    return rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))


def is_wider(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a dtype holds every number of another one, which is not the same."""
    return dtype is not other and torch.promote_types(dtype, other) is dtype


def through_factors_a(d_t: Tensor, stack: Tensor, dtype: torch.dtype) -> Tensor:
    """``dt A``, ``[tokens, in]``, of all adapters of one input: what they give to dx, in its dtype.

    Under autocast over a float32 model, PEFT rounds the product of each adapter, and adds them up in float32. Neither
    is their sum rounded here: it could be 1.6 times PEFT's error, or overflow in float16.

    Args:
        d_t: dt of all side by side, ``[tokens, sum of ranks]``.
        stack: their A's on top of each other, ``[sum of ranks, in]``, in dt's dtype.
        dtype: of dx.
    """
    if not is_wider(dtype, d_t.dtype):
        return cast_one(torch.mm(d_t, stack), dtype)
    if d_t.is_cuda:
        return cast_one(wide_product(d_t, stack), dtype)
    return torch.mm(cast_one(d_t, dtype), cast_one(stack, dtype))
