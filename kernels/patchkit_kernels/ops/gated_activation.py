"""The ops of a gated activation ``h = act(gate) * up``.

The formulas are those of GLU variants (Shazeer 2020, https://arxiv.org/abs/2002.05202), and by the product rule::

    h         = act(gate) * up
    grad_gate = grad * up * act'(gate)
    grad_up   = grad * act(gate)

Where one projection yields gate and up side by side, its backward reads their gradients side by side. These are written
in that form (``backward_packed``): bringing them together afterwards would take two tensors more, and a pass over both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.elementwise import ElementwiseOps, check_own, check_same
from patchkit_kernels.ops.registration import register_op, runs_kernel
from patchkit_kernels.ops.rows import as_rows
from patchkit_kernels.ops.triton_support import TRITON_DTYPES, jit, tl

AT_ONCE = 2**17
"""Elements that the reference of the packed backward computes at once, if there are several rows: ``act(gate)`` of them
is what it needs beside its results, and stays in a processor's caches until it is read again.
"""


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
    grad_gate_ptr: tl.tensor,
    grad_up_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    columns: tl.tensor,
    blocks_per_row: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    result_stride: tl.tensor,
    VALUE_AND_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """As :func:`gated_backward_kernel`, and hidden too. Rows of grad are adjacent; one result is written over it."""
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
    tl.store(grad_gate_ptr + (row * result_stride + column), grad_gate, mask=mask)
    tl.store(grad_up_ptr + (row * result_stride + column), grad * value, mask=mask)
    # Rounded as forward rounded it, also where the result is of a wider dtype.
    tl.store(hidden_ptr + own, (value * up).to(gate_ptr.dtype.element_ty), mask=mask)


class GatedActivation(ElementwiseOps):
    """``(gate, up)`` to ``act(gate) * up``; ``backward_recompute`` returns ``(grad_up, hidden)``.

    And ``patchkit::<name>_backward_packed(Tensor(a!) grad, Tensor gate, Tensor up, bool gate_first) -> Tensor``, which
    returns the gradients side by side, ``[..., 2n]``, that of gate first or last, and writes hidden over grad.
    """

    inputs = ("gate", "up")
    forward_kernel = gated_forward_kernel
    backward_kernel = gated_backward_kernel
    backward_recompute_kernel = gated_backward_recompute_kernel

    def __init__(self, activation: ActivationFunction) -> None:
        super().__init__(activation, activation.gated_name)
        self.backward_packed_name = f"{self.name}_backward_packed"
        self.backward_packed = _register_packed(self)

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

    def backward_packed_reference(self, grad: Tensor, gate: Tensor, up: Tensor, gate_first: bool) -> Tensor:
        """Both gradients side by side in torch; ``grad`` becomes ``act(gate) * up``."""
        packed = grad.new_empty(_packed_shape(grad))
        grad_gate, grad_up = _halves(packed, gate_first)
        if grad.numel() <= AT_ONCE or grad.dim() < 2:
            self._write_gradients(grad, gate, up, grad_gate, grad_up)
            return packed
        rows = max(1, AT_ONCE * grad.shape[0] // grad.numel())
        for parts in zip(*[torch.split(one, rows) for one in (grad, gate, up, grad_gate, grad_up)], strict=True):
            self._write_gradients(*parts)
        return packed

    def _write_gradients(self, grad: Tensor, gate: Tensor, up: Tensor, grad_gate: Tensor, grad_up: Tensor) -> None:
        """Write both gradients where they belong, and hidden over ``grad``."""
        value = self.activation.function(gate)
        torch.mul(value, grad, out=grad_up)
        self.activation.gradient_(torch.mul(grad, up, out=grad_gate), gate)
        torch.mul(value, up, out=grad)

    def launch_backward_recompute(
        self, grad: Tensor, *inputs: Tensor, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, ...]:
        """Run the third kernel. ``grad`` is contiguous and becomes grad_gate; returns grad_up and hidden."""
        grad_up, hidden = torch.empty_like(grad), torch.empty_like(grad, dtype=dtype)
        self._launch_recompute(grad, inputs, (grad, grad_up, hidden))
        return grad_up, hidden

    def launch_backward_packed(self, grad: Tensor, gate: Tensor, up: Tensor, gate_first: bool) -> Tensor:
        """The same kernel, with both gradients side by side; ``grad`` is contiguous and becomes hidden."""
        packed = torch.empty(*_packed_shape(grad), dtype=grad.dtype, device=grad.device)
        grad_gate, grad_up = _halves(packed, gate_first)
        self._launch_recompute(grad, (gate, up), (grad_gate, grad_up, grad))
        return packed

    def run_backward_packed(self, grad: Tensor, gate: Tensor, up: Tensor, gate_first: bool) -> Tensor:
        """What the op ``backward_packed`` returns, as :meth:`run` what ``forward`` does."""
        kind = runs_kernel(grad)
        if kind is None:
            return self.backward_packed(grad, gate, up, gate_first)
        packed = self.launch_backward_packed if kind else self.backward_packed_reference
        return packed(grad, gate, up, gate_first)

    def _launch_recompute(self, grad: Tensor, inputs: Sequence[Tensor], results: tuple[Tensor, Tensor, Tensor]) -> None:
        """Of the gradients and hidden, one is written over ``grad``; those of the former have one row stride."""
        if not grad.numel():
            return
        grad_gate, grad_up, hidden = results
        tensors, rows, columns, strides = as_rows(grad, *inputs, grad_gate)
        tensors[3:] = grad_gate, grad_up, hidden
        self.launch_backward_kernel(self.backward_recompute_kernel, rows, columns, tensors, strides[1:])


def _packed_shape(grad: Tensor) -> tuple[int, ...]:
    """Of two gradients like this ``[..., n]`` side by side: ``[..., 2n]``."""
    return *grad.shape[:-1], 2 * grad.shape[-1]


def _halves(packed: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    """The gradient of gate and that of up, views of ``[..., 2n]``."""
    first, second = packed.chunk(2, -1)
    return (first, second) if gate_first else (second, first)


def _register_packed(ops: GatedActivation) -> Callable[[Tensor, Tensor, Tensor, bool], Tensor]:
    name, names = ops.backward_packed_name, ("grad", *ops.inputs)

    def check(*tensors: Tensor) -> None:
        check_same(name, names, tensors)
        check_own(name, tensors[0])

    def reference(grad: Tensor, gate: Tensor, up: Tensor, gate_first: bool) -> Tensor:
        check(grad, gate, up)
        with torch.no_grad():  # the op has no derivative, and torch no graph of what is written into given tensors
            return ops.backward_packed_reference(grad, gate, up, gate_first)

    def fake(grad: Tensor, gate: Tensor, up: Tensor, gate_first: bool) -> Tensor:
        check(grad, gate, up)
        return grad.new_empty(_packed_shape(grad))

    def kernel(grad: Tensor, gate: Tensor, up: Tensor, gate_first: bool) -> Tensor:
        if grad.dtype not in TRITON_DTYPES:
            return reference(grad, gate, up, gate_first)
        check(grad, gate, up)
        return ops.launch_backward_packed(grad, gate, up, gate_first)

    schema = f"{name}(Tensor(a!) grad, Tensor gate, Tensor up, bool gate_first) -> Tensor"
    registered: Callable[[Tensor, Tensor, Tensor, bool], Tensor] = register_op(schema, reference, fake, kernel)
    return registered
