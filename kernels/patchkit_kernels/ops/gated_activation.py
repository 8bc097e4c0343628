"""The ops of a gated activation ``h = act(gate) * up``.

The formulas are those of GLU variants (Shazeer 2020, https://arxiv.org/abs/2002.05202), and by the product rule::

    h         = act(gate) * up
    grad_gate = grad * up * act'(gate)
    grad_up   = grad * act(gate)
"""

from __future__ import annotations

from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.elementwise import ElementwiseOps
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def gated_forward_kernel(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    columns: tl.tensor,
    blocks_per_row: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of one row: ``hidden = VALUE(gate) * up``, computed in fp32 and rounded once, by the store."""
    program = tl.program_id(0)
    # 64-bit before the products: both can pass 2**31 elements although each factor fits 32 bits.
    row = (program // blocks_per_row).to(tl.int64)
    column = (program % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    gate = tl.load(gate_ptr + (row * gate_stride + column), mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + (row * up_stride + column), mask=mask, other=0.0).to(tl.float32)
    tl.store(hidden_ptr + (row * columns + column), VALUE(gate) * up, mask=mask)


@jit
def gated_backward_kernel(
    grad_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    grad_gate_ptr: tl.tensor,
    grad_up_ptr: tl.tensor,
    columns: tl.tensor,
    blocks_per_row: tl.tensor,
    grad_stride: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    VALUE_AND_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of one row of both gradients, computed in fp32 and rounded once, by the stores."""
    program = tl.program_id(0)
    row = (program // blocks_per_row).to(tl.int64)
    column = (program % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    grad = tl.load(grad_ptr + (row * grad_stride + column), mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + (row * gate_stride + column), mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + (row * up_stride + column), mask=mask, other=0.0).to(tl.float32)
    value, grad_gate = VALUE_AND_GRADIENT(gate, grad * up)
    tl.store(grad_gate_ptr + (row * columns + column), grad_gate, mask=mask)
    tl.store(grad_up_ptr + (row * columns + column), grad * value, mask=mask)


@jit
def gated_backward_recompute_kernel(
    grad_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    grad_up_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    columns: tl.tensor,
    blocks_per_row: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    VALUE_AND_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """As :func:`gated_backward_kernel`, and hidden too; grad_gate is written over grad, whose rows are adjacent."""
    program = tl.program_id(0)
    row = (program // blocks_per_row).to(tl.int64)
    column = (program % blocks_per_row).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    own = row * columns + column
    grad = tl.load(grad_ptr + own, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + (row * gate_stride + column), mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + (row * up_stride + column), mask=mask, other=0.0).to(tl.float32)
    value, grad_gate = VALUE_AND_GRADIENT(gate, grad * up)
    # Each program reads and writes the same elements of grad, each once, so the order of programs does not matter.
    tl.store(grad_ptr + own, grad_gate, mask=mask)
    tl.store(grad_up_ptr + own, grad * value, mask=mask)
    tl.store(hidden_ptr + own, value * up, mask=mask)


class GatedActivation(ElementwiseOps):
    """``(gate, up)`` to ``act(gate) * up``; ``backward_recompute`` returns ``(grad_up, hidden)``."""

    inputs = ("gate", "up")
    forward_kernel = gated_forward_kernel
    backward_kernel = gated_backward_kernel
    backward_recompute_kernel = gated_backward_recompute_kernel

    def __init__(self, activation: ActivationFunction) -> None:
        super().__init__(activation, activation.gated_name)

    def reference(self, *inputs: Tensor) -> Tensor:
        """``act(gate) * up`` in torch, differentiable."""
        gate, up = inputs
        value = self.activation.function(gate)
        # In place where autograd does not need the value, which some activations keep: one buffer less.
        return value * up if value.requires_grad else value.mul_(up)

    def backward_reference(self, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``(grad * up * act'(gate), grad * act(gate))`` in torch."""
        gate, up = inputs
        return self.activation.gradient_(grad * up, gate), self.activation.function(gate).mul_(grad)

    def backward_recompute_reference(self, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``(grad * act(gate), act(gate) * up)`` in torch; ``grad`` becomes ``grad * up * act'(gate)``."""
        gate, up = inputs
        value = self.activation.function(gate)
        hidden = value * up
        grad_up = value.mul_(grad)
        self.activation.gradient_(grad.mul_(up), gate)
        return grad_up, hidden
