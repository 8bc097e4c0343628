"""Sums over parts of the tokens, in float32 at least, rounded once at the end."""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import present

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
