"""``[..., n]`` as rows ``[tokens, n]``, and back."""

from __future__ import annotations

import torch
from torch import Tensor

_unsafe_view = torch.ops.aten._unsafe_view.default


def as_rows(tensor: Tensor) -> Tensor:
    """``[tokens, n]``."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])


def with_leading(rows: Tensor, like: Tensor) -> Tensor:
    """Rows ``[tokens, n]`` of our own with the leading shape of ``like``.

    Not a view to autograd, as which it could not be modified in place by what follows: nobody else holds the rows.
    ``F.linear`` does the same.
    """
    result: Tensor = _unsafe_view(rows, [*like.shape[:-1], rows.shape[-1]])
    return result
