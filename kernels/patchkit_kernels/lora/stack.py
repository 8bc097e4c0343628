"""Rows multiplied with the matrices of a stack and their LoRA adapters, without a stack of ``W + s L R``.

With e the matrix that a row x belongs to::

    t  = x L_e                       [rows, rank]
    y  = x W_e + s t R_e             [rows, out]

    dt = s dy R_e^T                  [rows, rank]
    dx = dy W_e^T + dt L_e^T         [rows, in]
    dL_e = sum of x^T dt             dR_e = s sum of t^T dy          over the rows of e

The stack is frozen. PEFT's ``ParamWrapper`` makes ``W + s L R`` of all matrices at each call, keeps it, and makes its
gradient. Here x is kept, and t; L and R are two small copies. The sums over adapters are made in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.stack_products import StackProducts
from patchkit_kernels.lora.stand_in import stand_in


class StackAdapter(NamedTuple):
    """A LoRA adapter of every matrix of a stack.

    Attributes:
        left: L, ``[matrices, in, rank]``.
        right: R, ``[matrices, rank, out]``.
        scaling: s.
    """

    left: Tensor
    right: Tensor
    scaling: float


class LoraStack(torch.autograd.Function):
    """See this file's docstring for the formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        unread: Tensor | None,
        products: StackProducts,
        scalings: tuple[float, ...],
        weight: Tensor,
        *factors: Any,
    ) -> Tensor:
        """``[rows, out]``; keeps x where L or R is trained, and t where R is."""
        ctx.products, ctx.scalings, ctx.unread = products, scalings, unread
        needed = ctx.needs_input_grad[5:]
        with _no_autocast(x):
            y, reduced = products.base(x, weight), []
            for i, scaling in enumerate(scalings):
                t = products.product(x, factors[2 * i])
                y = products.add(y, t, factors[2 * i + 1], scaling)
                reduced.append(t if needed[2 * i + 1] else None)
        ctx.save_for_backward(x if unread is None else None, weight, *reduced, *factors)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of every factor that needs one."""
        x, weight, *saved = ctx.saved_tensors
        products, scalings = ctx.products, ctx.scalings
        reduced, factors = saved[: len(scalings)], saved[len(scalings) :]
        x_needed, _, _, _, _, *needed = ctx.needs_input_grad
        like = ctx.unread if x is None else x
        if wants_ordinary_operations([grad]):

            def again(x: Tensor, *factors: Tensor) -> list[Tensor]:
                return [_by_ordinary_operations(x, products, scalings, weight, factors)]

            d_x, *found = differentiable_backward(again, (like, *factors), (x_needed, *needed), [grad])
            return d_x, None, None, None, None, *found
        grad, found = grad.contiguous(), []
        d_x = products.base(grad, weight.transpose(1, 2)) if x_needed else None
        for i, (scaling, t) in enumerate(zip(scalings, reduced, strict=True)):
            left, right = factors[2 * i : 2 * i + 2]
            d_t = None
            if x_needed or needed[2 * i]:
                d_t = products.product(grad, right.transpose(1, 2)).mul_(scaling)
                d_x = None if d_x is None else products.add(d_x, d_t, left.transpose(1, 2), 1.0)
            found += [
                products.outer(x, d_t, left.shape[0], 1.0) if needed[2 * i] and d_t is not None else None,
                products.outer(t, grad, left.shape[0], scaling) if t is not None else None,
            ]
        return d_x, None, None, None, None, *found


def lora_stack(x: Tensor, weight: Tensor, adapters: Sequence[StackAdapter], products: StackProducts) -> Tensor:
    """Multiply rows with the adapted matrices that they belong to.

    Args:
        x: ``[rows, in]`` (:class:`~patchkit_kernels.lora.stack_products.Batched`: ``[matrices, rows, in]``).
        weight: W, ``[matrices, in, out]``, frozen, of any strides.
        adapters: at least one, with factors of x's dtype; frozen or trained.
        products: which row belongs to which matrix.

    Returns:
        ``[rows, out]`` in x's dtype. Autocast does not touch the products.
    """
    factors = [factor for adapter in adapters for factor in adapter[:2]]
    trained = any(factor.requires_grad for factor in factors) or not torch.is_grad_enabled()
    y: Tensor = LoraStack.apply(  # type: ignore[no-untyped-call]
        x,
        None if trained else stand_in(x),
        products,
        tuple(adapter.scaling for adapter in adapters),
        weight,
        *factors,
    )
    return y


def _by_ordinary_operations(
    x: Tensor, products: StackProducts, scalings: Sequence[float], weight: Tensor, factors: Sequence[Tensor]
) -> Tensor:
    y = products.base(x, weight)
    for i, scaling in enumerate(scalings):
        y = y + products.product(products.product(x, factors[2 * i]), factors[2 * i + 1]) * scaling
    return y


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """The caller has chosen the dtypes."""
    kind = x.device.type
    off = kind == "meta" or not torch.is_autocast_enabled(kind)
    return nullcontext() if off else torch.autocast(kind, enabled=False)
