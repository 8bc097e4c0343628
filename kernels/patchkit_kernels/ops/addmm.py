"""A product of matrices that is added to a buffer in place, in compiled code too.

``torch.compile`` makes of ``total.addmm_(left, right)`` an ``addmm`` that gives a new tensor, for which the library is
handed a copy of ``total``: a pass more over a tensor as large as an activation (PyTorch's pull request 191706 says so
of CUDA). An op that changes its argument stays one: the compiler sees that nobody else reads the buffer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.registration import register_op


def addmm_(total: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
    """``total + alpha left @ right``, written over total ``[rows, columns]`` and returned.

    It has no derivative while compiling: total is a buffer of a forward or backward that autograd does not look into.

    Args:
        total: a buffer of ours, of any floating dtype.
        left: ``[rows, n]`` in its dtype.
        right: ``[n, columns]`` in its dtype.
        alpha: as said.
    """
    if not torch.compiler.is_compiling():
        return total.addmm_(left, right, alpha=alpha)
    _op(total, left, right, alpha)
    return total


def _reference(total: Tensor, left: Tensor, right: Tensor, alpha: float) -> None:
    total.addmm_(left, right, alpha=alpha)


def _fake(total: Tensor, left: Tensor, right: Tensor, alpha: float) -> None:
    if total.shape != (left.shape[0], right.shape[1]) or left.shape[1] != right.shape[0]:
        found = ", ".join(str(list(tensor.shape)) for tensor in (total, left, right))
        raise ValueError(f"patchkit::addmm_ takes [rows, columns], [rows, n] and [n, columns], but got {found}")


_op = register_op("addmm_(Tensor(a!) total, Tensor left, Tensor right, float alpha) -> ()", _reference, _fake)
