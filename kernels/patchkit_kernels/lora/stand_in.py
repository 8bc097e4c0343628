"""Tensors that stand in for others when a backward is computed again as ordinary, differentiable operations.

What backward does not read is not kept, and upstream does not keep it either: where autograd differentiates a product,
it keeps each factor only if the other one needs a gradient. To compute such a product again, something of the factor's
shape is needed, with the factor's place in autograd's graph. Its value is not: where the product's value matters, the
value itself was kept, and :func:`substitute` puts it there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Zeros of x's shape and dtype in one element's memory."""
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """What reaches the stand-in reaches x."""
        return grad


class _Substitute(torch.autograd.Function):
    # In the form that functorch takes: a backward can run under torch.func.vmap.
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, path: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def stand_in(x: Tensor) -> Tensor:
    """A tensor of x's shape and dtype, with x's place in the graph if it has one, that does not keep x alive."""
    if x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        result: Tensor = _StandIn.apply(x)  # type: ignore[no-untyped-call]
        return result
    return x.new_zeros(()).expand(x.shape)


def substitute(value: Tensor, path: Tensor) -> Tensor:
    """``value``, with the derivatives of ``path``, of the same shape and dtype."""
    result: Tensor = _Substitute.apply(value, path)  # type: ignore[no-untyped-call]
    return result


def recalled(value: Tensor | None, path: Tensor) -> Tensor:
    """``path``, or where an earlier call kept its value, that in its dtype with the derivatives of ``path``."""
    return path if value is None else substitute(value.to(path.dtype), path)
