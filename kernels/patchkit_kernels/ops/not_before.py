"""A copy of a tensor that a compiler cannot make before another tensor is there.

``torch.compile`` sees forward and backward at once. What backward makes again is the same as in forward to it, so that
it would be made once and kept. What is made of such a copy depends on a gradient, and is made in backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.registration import register_op


def not_before(x: Tensor, other: Tensor) -> Tensor:
    """x, of any shape; while compiling, a copy that cannot be made before ``other`` is there.

    It has no derivative: x is read by a backward that autograd does not look into.
    """
    if not torch.compiler.is_compiling():
        return x
    result: Tensor = _not_before(x, other)
    return result


def _reference(x: Tensor, other: Tensor) -> Tensor:
    return x.clone()


_not_before = register_op("not_before(Tensor x, Tensor other) -> Tensor", _reference, _reference)
