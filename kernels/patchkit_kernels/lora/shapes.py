"""``[..., n]`` as rows ``[tokens, n]``, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.registration import dispatch_modes

_unsafe_view = torch.ops.aten._unsafe_view.default


def as_rows(tensor: Tensor) -> Tensor:
    """``[tokens, n]``."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def with_leading(rows: Tensor, like: Tensor) -> Tensor:
    """Rows ``[tokens, n]`` of our own with the leading shape of ``like``, as ``F.linear`` gives its result a shape.

    Not a view to autograd, as which it could not be modified in place by what follows: nobody else holds the rows.
    """
    shape = (*like.shape[:-1], rows.shape[-1])
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        result: Tensor = _unsafe_view(rows, shape)
        return result
    # The same without a graph, at a third of the time: a plain tensor of the same memory.
    return rows.view(shape).data


def shaped(rows: Tensor, like: Tensor) -> Tensor:
    """:func:`with_leading`, without a graph and outside the compiler; in one call."""
    shape = like.shape
    dims = len(shape)
    if dims == 2:
        return rows
    if dispatch_modes() or not rows.is_contiguous():  # a layer that stores its weight in its own way may give such rows
        return with_leading(rows, like)
    # Of as many elements: their memory stays as it is.
    if dims == 3:  # as nearly always; numbers are read faster than a tuple of them
        return rows.resize_(shape[0], shape[1], rows.shape[1])
    return rows.resize_((*shape[:-1], rows.shape[1]))


def shaped_as(rows: Tensor, like: Tensor) -> Tensor:
    """:func:`shaped` for rows as wide as ``like``."""
    if like.dim() == 2:
        return rows
    if dispatch_modes() or not rows.is_contiguous():
        return with_leading(rows, like)
    return rows.resize_as_(like)
