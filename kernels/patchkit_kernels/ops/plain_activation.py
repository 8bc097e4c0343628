"""The ops of an activation ``h = act(x)``, with ``grad_x = grad * act'(x)``."""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.elementwise import ElementwiseOps
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def plain_forward_kernel(
    x_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    columns: tl.tensor,
    blocks_per_row: tl.tensor,
    x_stride: tl.tensor,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of one row: ``hidden = VALUE(x)``, computed in fp32 and rounded once, by the store."""
    program = tl.program_id(0)
    # 64-bit before the products: both can pass 2**31 elements although each factor fits 32 bits.
    row = (program // blocks_per_row).to(tl.int64)
    column = (program % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    x = tl.load(x_ptr + (row * x_stride + column), mask=mask, other=0.0).to(tl.float32)
    tl.store(hidden_ptr + (row * columns + column), VALUE(x), mask=mask)


@jit
def plain_backward_kernel(
    grad_ptr: tl.tensor,
    x_ptr: tl.tensor,
    grad_x_ptr: tl.tensor,
    columns: tl.tensor,
    blocks_per_row: tl.tensor,
    grad_stride: tl.tensor,
    x_stride: tl.tensor,
    VALUE_AND_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of one row of the gradient, computed in fp32 and rounded once, by the store."""
    program = tl.program_id(0)
    row = (program // blocks_per_row).to(tl.int64)
    column = (program % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    grad = tl.load(grad_ptr + (row * grad_stride + column), mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + (row * x_stride + column), mask=mask, other=0.0).to(tl.float32)
    _, grad_x = VALUE_AND_GRADIENT(x, grad)
    tl.store(grad_x_ptr + (row * columns + column), grad_x, mask=mask)


@jit
def plain_backward_recompute_kernel(
    grad_ptr: tl.tensor,
    x_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    columns: tl.tensor,
    blocks_per_row: tl.tensor,
    x_stride: tl.tensor,
    VALUE_AND_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """As :func:`plain_backward_kernel`, and hidden too; grad_x is written over grad, whose rows are adjacent."""
    program = tl.program_id(0)
    row = (program // blocks_per_row).to(tl.int64)
    column = (program % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    own = row * columns + column
    grad = tl.load(grad_ptr + own, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + (row * x_stride + column), mask=mask, other=0.0).to(tl.float32)
    value, grad_x = VALUE_AND_GRADIENT(x, grad)
    # Each program reads and writes the same elements of grad, each once, so the order of programs does not matter.
    tl.store(grad_ptr + own, grad_x, mask=mask)
    # Rounded as forward rounded it, also where the result is of a wider dtype.
    tl.store(hidden_ptr + own, value.to(x_ptr.dtype.element_ty), mask=mask)


class PlainActivation(ElementwiseOps):
    """``x`` to ``act(x)``; ``backward_recompute`` returns hidden."""

    inputs = ("x",)
    forward_kernel = plain_forward_kernel
    backward_kernel = plain_backward_kernel
    backward_recompute_kernel = plain_backward_recompute_kernel

    def __init__(self, activation: ActivationFunction) -> None:
        super().__init__(activation, activation.name)

    def reference(self, *inputs: Tensor) -> Tensor:
        """``act(x)`` in torch, differentiable."""
        (x,) = inputs
        return self.activation.function(x)

    def backward_reference(self, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``grad * act'(x)`` in torch."""
        (x,) = inputs
        return (self.activation.gradient_(grad.clone(memory_format=torch.contiguous_format), x),)

    def backward_recompute_reference(self, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``act(x)`` in torch; ``grad`` becomes ``grad * act'(x)``."""
        (x,) = inputs
        value = self.activation.function(x)
        self.activation.gradient_(grad, x)
        return (value,)
