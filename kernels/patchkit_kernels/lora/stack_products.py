"""Products of rows with a stack of matrices, where each row belongs to one matrix of the stack (an expert's).

Which row belongs to which matrix is said in the way in which the caller multiplies with the stack:

* :class:`Grouped`: the rows are sorted by matrix, and offsets say where each group ends;
* :class:`Gathered`: an index for each row;
* :class:`Batched`: the rows have a dimension of their own for the matrices.

Each computes the caller's product with W by the caller's own operation, so that it rounds as the caller's does, and the
products with the factors of an adapter in the way that fits few columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

_unsafe_view = torch.ops.aten._unsafe_view.default

_ALIGNMENT = 16
"""Bytes to which ``torch._grouped_mm`` wants the rows of every operand aligned."""


class StackProducts(Protocol):
    """Products of rows ``[rows, in]`` with the matrices ``[matrices, in, out]`` that they belong to."""

    def base(self, rows: Tensor, stack: Tensor) -> Tensor:
        """``[rows, out]`` in the rows' dtype; the stack is frozen, and may be of another dtype."""

    def product(self, rows: Tensor, stack: Tensor) -> Tensor:
        """``[rows, out]`` for a stack of few rows or columns; by differentiable operations."""

    def add(self, total: Tensor, rows: Tensor, stack: Tensor, scaling: float) -> Tensor:
        """``total`` ``[rows, out]``, which is given up, plus ``scaling`` times the product."""

    def outer(self, left: Tensor, right: Tensor, matrices: int, scaling: float) -> Tensor:
        """``scaling left^T right`` of the rows of each matrix, ``[matrices, columns of left, columns of right]``."""


class Grouped:
    """Rows ``[rows, in]`` sorted by matrix. What comes after the last group belongs to none.

    Args:
        offsets: where each group ends, int32 ``[matrices]``.
        multiply: the caller's product, from rows, stack and ``offs``: ``torch._grouped_mm`` or one like it.
        native: whether the products with factors are to be grouped in one operation too, where their widths allow
            it. A loop over the groups asks the device for the offsets, but it adds without rounding in between.
    """

    def __init__(self, offsets: Tensor, multiply: Callable[..., Tensor], *, native: bool) -> None:
        self._offsets, self._multiply, self._native = offsets, multiply, native

    @cached_property
    def _bounds(self) -> list[int]:
        bounds: list[int] = self._offsets.tolist()
        return bounds

    def _groups(self) -> Iterator[tuple[int, slice]]:
        """The matrices that have rows, and these rows."""
        start = 0
        for index, end in enumerate(self._bounds):
            if end > start:
                yield index, slice(start, end)
            start = end

    def base(self, rows: Tensor, stack: Tensor) -> Tensor:
        """By the caller's operation."""
        return self._multiply(rows, stack, offs=self._offsets)

    def product(self, rows: Tensor, stack: Tensor) -> Tensor:
        """By differentiable operations."""
        if self._is_native(rows, stack):
            return self._multiply(rows, stack, offs=self._offsets)
        parts = [rows[group] @ stack[index] for index, group in self._groups()]
        rest = rows.shape[0] - (self._bounds[-1] if self._bounds else 0)
        if rest or not parts:
            parts.append(rows.new_zeros(rest, stack.shape[2]))
        return torch.cat(parts)

    def add(self, total: Tensor, rows: Tensor, stack: Tensor, scaling: float) -> Tensor:
        """Into ``total``."""
        if self._is_native(rows, stack):
            return total.add_(self._multiply(rows, stack, offs=self._offsets), alpha=scaling)
        for index, group in self._groups():
            total[group].addmm_(rows[group], stack[index], alpha=scaling)
        return total

    def outer(self, left: Tensor, right: Tensor, matrices: int, scaling: float) -> Tensor:
        """Zeros where a matrix has no rows."""
        if self._is_native(left, right):
            return self._multiply(left.t(), right, offs=self._offsets).mul_(scaling)
        found = left.new_zeros(matrices, left.shape[1], right.shape[1])
        for index, group in self._groups():
            found[index].addmm_(left[group].t(), right[group], alpha=scaling)
        return found

    def _is_native(self, *operands: Tensor) -> bool:
        return self._native and all(
            size * operand.element_size() % _ALIGNMENT == 0
            for operand in operands
            for size in operand.shape[-2 if operand.dim() == 3 else -1 :]
        )


class Gathered:
    """Rows ``[rows, in]``, each with the index of its matrix.

    Args:
        indices: integers ``[rows]``.
    """

    def __init__(self, indices: Tensor) -> None:
        self._indices = indices

    def base(self, rows: Tensor, stack: Tensor) -> Tensor:
        """By the caller's operation."""
        return self.product(rows, stack)

    def product(self, rows: Tensor, stack: Tensor) -> Tensor:
        """By differentiable operations."""
        # Not a view to autograd: a bias may be added in place.
        found: Tensor = _unsafe_view(
            torch.bmm(rows.unsqueeze(1), self._selected(stack, rows.dtype)), (rows.shape[0], stack.shape[2])
        )
        return found

    def add(self, total: Tensor, rows: Tensor, stack: Tensor, scaling: float) -> Tensor:
        """Into ``total``."""
        total.unsqueeze(1).baddbmm_(rows.unsqueeze(1), self._selected(stack, rows.dtype), alpha=scaling)
        return total

    def outer(self, left: Tensor, right: Tensor, matrices: int, scaling: float) -> Tensor:
        """Zeros where a matrix has no rows."""
        # Added up in float32, and by the operation that advanced indexing has as its backward: it is deterministic.
        wide = torch.promote_types(left.dtype, torch.float32)
        products = left.unsqueeze(2) * right.to(wide).unsqueeze(1)
        found = products.new_zeros(matrices, *products.shape[1:])
        return found.index_put_((self._indices,), products, accumulate=True).mul_(scaling).to(left.dtype)

    def _selected(self, stack: Tensor, dtype: torch.dtype) -> Tensor:
        """The matrix of each row, ``[rows, in, out]``, copied in the order in which the stack is stored."""
        if stack.stride(2) > stack.stride(1):
            return stack.transpose(1, 2)[self._indices].transpose(1, 2).to(dtype)
        return stack[self._indices].to(dtype)


class Batched:
    """Rows ``[matrices, rows, in]``, as many for each matrix."""

    def base(self, rows: Tensor, stack: Tensor) -> Tensor:
        """By the caller's operation."""
        return self.product(rows, stack)

    def product(self, rows: Tensor, stack: Tensor) -> Tensor:
        """By differentiable operations."""
        return torch.bmm(rows, stack.to(rows.dtype))

    def add(self, total: Tensor, rows: Tensor, stack: Tensor, scaling: float) -> Tensor:
        """Into ``total``."""
        return total.baddbmm_(rows, stack, alpha=scaling)

    def outer(self, left: Tensor, right: Tensor, matrices: int, scaling: float) -> Tensor:
        """Zeros where a matrix has no rows."""
        unread: Any = left.new_empty(())
        return torch.baddbmm(unread, left.transpose(1, 2), right, beta=0, alpha=scaling)
