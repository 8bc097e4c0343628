"""What every gated activation ``h = act(gate) * up`` shares: the Triton kernels, their launcher, and the torch ops.

A file such as ``swiglu.py`` supplies what differs, the activation and its derivative, as a :class:`GatedActivation`.
The formulas are those of GLU variants (Shazeer 2020, https://arxiv.org/abs/2002.05202), and by the product rule::

    h         = act(gate) * up
    grad_gate = grad * up * act'(gate)
    grad_up   = grad * act(gate)

A fused MLP needs both gradients and h once more, because h was not kept. ``backward_recompute`` gives all three from
one reading of gate and up, and writes grad_gate over grad, which nobody else holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.ops.registration import LIBRARY
from patchkit_kernels.ops.triton_support import (
    TRITON_AVAILABLE,
    TRITON_DISPATCH_KEYS,
    TRITON_DTYPES,
    device_guard,
    jit,
    tl,
)

Forward = Callable[[Tensor, Tensor], Tensor]
Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From grad, gate and up to two tensors: the gradients, or for ``backward_recompute`` (grad_up, hidden)."""

BLOCK = 1024
"""Elements per program: 8 per thread with Triton's 4 warps of 32, which is one 16-byte access in bf16 and fp16."""


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
    VALUE_AND_SLOPE: tl.constexpr,
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
    value, slope = VALUE_AND_SLOPE(gate)
    tl.store(grad_gate_ptr + (row * columns + column), grad * up * slope, mask=mask)
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
    VALUE_AND_SLOPE: tl.constexpr,
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
    value, slope = VALUE_AND_SLOPE(gate)
    # Each program reads and writes the same elements of grad, each once, so the order of programs does not matter.
    tl.store(grad_ptr + own, grad * up * slope, mask=mask)
    tl.store(grad_up_ptr + own, grad * value, mask=mask)
    tl.store(hidden_ptr + own, value * up, mask=mask)


@dataclass(frozen=True)
class GatedActivation:
    """A gated activation: its formula for Triton and its reference in torch.

    Attributes:
        name: the forward op is ``patchkit::<name>``, the backward op ``patchkit::<name>_backward``.
        value: ``@jit`` function, fp32 block ``x`` to ``act(x)``.
        value_and_slope: ``@jit`` function, fp32 block ``x`` to ``(act(x), act'(x))``.
        reference: ``(gate, up) -> hidden`` in torch, twice differentiable by autograd.
        backward_reference: ``(grad, gate, up) -> (grad_gate, grad_up)`` in torch.
        backward_recompute_reference: ``(grad, gate, up) -> (grad_up, hidden)`` in torch; grad becomes grad_gate.
    """

    name: str
    value: Any
    value_and_slope: Any
    reference: Forward
    backward_reference: Backward
    backward_recompute_reference: Backward

    def launch(self, gate: Tensor, up: Tensor) -> Tensor:
        """Run the forward kernel. ``gate`` and ``up`` are ``[..., n]`` in one of TRITON_DTYPES; so is the result."""
        hidden = torch.empty_like(gate, memory_format=torch.contiguous_format)
        if hidden.numel() == 0:
            return hidden
        (gate, up), rows, columns, strides = _as_rows(gate, up)
        blocks_per_row = -(-columns // BLOCK)
        with device_guard(gate):
            gated_forward_kernel[(rows * blocks_per_row,)](
                gate, up, hidden, columns, blocks_per_row, *strides, VALUE=self.value, BLOCK=BLOCK
            )
        return hidden

    def launch_backward(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Run the backward kernel. All of ``[..., n]`` in one of TRITON_DTYPES; returns ``(grad_gate, grad_up)``."""
        grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
        grad_up = torch.empty_like(grad_gate)
        if grad_gate.numel() == 0:
            return grad_gate, grad_up
        (grad, gate, up), rows, columns, strides = _as_rows(grad, gate, up)
        blocks_per_row = -(-columns // BLOCK)
        with device_guard(gate):
            gated_backward_kernel[(rows * blocks_per_row,)](
                grad,
                gate,
                up,
                grad_gate,
                grad_up,
                columns,
                blocks_per_row,
                *strides,
                VALUE_AND_SLOPE=self.value_and_slope,
                BLOCK=BLOCK,
            )
        return grad_gate, grad_up

    def launch_backward_recompute(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Run the third kernel. ``grad`` is contiguous and becomes grad_gate; returns ``(grad_up, hidden)``."""
        grad_up = torch.empty_like(grad, memory_format=torch.contiguous_format)
        hidden = torch.empty_like(grad_up)
        if grad.numel() == 0:
            return grad_up, hidden
        (_, gate, up), rows, columns, (_, *strides) = _as_rows(grad, gate, up)
        blocks_per_row = -(-columns // BLOCK)
        with device_guard(gate):
            gated_backward_recompute_kernel[(rows * blocks_per_row,)](
                grad,
                gate,
                up,
                grad_up,
                hidden,
                columns,
                blocks_per_row,
                *strides,
                VALUE_AND_SLOPE=self.value_and_slope,
                BLOCK=BLOCK,
            )
        return grad_up, hidden


def _row_stride(tensor: Tensor) -> int | None:
    """Elements from one row to the next if ``tensor`` is evenly spaced rows of adjacent elements, else None.

    The halves of a fused ``gate_up`` output, ``[..., 2n]`` split in two, are such rows: ``2n`` apart.
    """
    if tensor.ndim == 0 or (tensor.stride(-1) != 1 and tensor.size(-1) != 1):
        return None
    row_stride: int | None = None
    next_stride = 0
    for size, stride in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1]), strict=True):
        if size == 1:  # its stride is never used and may be anything
            continue
        if row_stride is None:
            row_stride = stride
        elif stride != next_stride:
            return None
        next_stride = stride * size
    return row_stride or 0


def _as_rows(*tensors: Tensor) -> tuple[list[Tensor], int, int, list[int]]:
    """View non-empty tensors of one shape as rows, copying those only that are none.

    Returns ``(tensors, rows, columns, row strides)``.
    """
    shape = tensors[0].shape
    rows = [tensor if _row_stride(tensor) is not None else tensor.contiguous() for tensor in tensors]
    if all(tensor.is_contiguous() for tensor in rows):
        # One long row: no partly filled block at the end of each row.
        return rows, 1, shape.numel(), [0] * len(rows)
    return rows, shape.numel() // shape[-1], shape[-1], [_row_stride(tensor) or 0 for tensor in rows]


def _check_same(name: str, **tensors: Tensor) -> None:
    """Raise ValueError unless all tensors agree in shape, dtype and device, since nothing here broadcasts or casts."""
    first, *others = tensors.values()
    for other in others:
        if other.shape != first.shape or other.dtype != first.dtype or other.device != first.device:
            found = ", ".join(
                f"{key}: {list(value.shape)} {value.dtype} on {value.device}" for key, value in tensors.items()
            )
            raise ValueError(f"patchkit::{name} takes tensors of one shape, dtype and device, but got {found}")


def _check_own(name: str, grad: Tensor) -> None:
    """Raise ValueError unless ``grad`` can be written over row by row."""
    if not grad.is_contiguous():
        raise ValueError(
            f"patchkit::{name} writes over grad, which must be contiguous, but has strides {grad.stride()}"
        )


def register(activation: GatedActivation) -> tuple[Forward, Backward, Backward]:
    """Register ``activation`` with the dispatcher and return its forward op and both backward ops.

    ``patchkit::<name>(Tensor gate, Tensor up) -> Tensor``,
    ``patchkit::<name>_backward(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)``, which returns
    ``(grad_gate, grad_up)``, and
    ``patchkit::<name>_backward_recompute(Tensor(a!) grad, Tensor gate, Tensor up) -> (Tensor, Tensor)``, which writes
    grad_gate over grad (contiguous), returns ``(grad_up, hidden)`` and has no derivative of its own. All tensors are
    ``[..., n]`` of one shape, dtype and device, results contiguous. The Triton kernels run on CUDA, ROCm and XPU in
    bf16, fp16 and fp32, the reference everywhere else.

    Uses ``torch.library.Library`` because ``torch.library.custom_op`` costs 1.4 times as much per call: forward and
    backward of a small tensor 61 against 44 microseconds, measured with torch 2.13 on a CPU.
    """
    name, backward_name = activation.name, f"{activation.name}_backward"
    recompute_name = f"{backward_name}_recompute"
    tags = (torch.Tag.pt2_compliant_tag,)
    LIBRARY.define(f"{recompute_name}(Tensor(a!) grad, Tensor gate, Tensor up) -> (Tensor, Tensor)", tags=tags)
    LIBRARY.define(f"{name}(Tensor gate, Tensor up) -> Tensor", tags=tags)
    LIBRARY.define(f"{backward_name}(Tensor grad, Tensor gate, Tensor up) -> (Tensor, Tensor)", tags=tags)
    op: Forward = getattr(torch.ops.patchkit, name).default
    backward_op: Backward = getattr(torch.ops.patchkit, backward_name).default
    recompute_op: Backward = getattr(torch.ops.patchkit, recompute_name).default
    _register_references(activation)
    if TRITON_AVAILABLE:
        _register_kernels(activation)
    _register_recompute(activation, recompute_name)
    _register_autograd(activation, backward_op)
    return op, backward_op, recompute_op


def _register_references(activation: GatedActivation) -> None:
    """The implementation for devices without a kernel, and the shape-only one for FakeTensor and torch.compile."""
    name, backward_name = activation.name, f"{activation.name}_backward"

    def forward(gate: Tensor, up: Tensor) -> Tensor:
        _check_same(name, gate=gate, up=up)
        return activation.reference(gate, up).contiguous()

    def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        _check_same(backward_name, grad=grad, gate=gate, up=up)
        grad_gate, grad_up = activation.backward_reference(grad, gate, up)
        return grad_gate.contiguous(), grad_up.contiguous()

    def fake_forward(gate: Tensor, up: Tensor) -> Tensor:
        _check_same(name, gate=gate, up=up)
        return torch.empty_like(gate, memory_format=torch.contiguous_format)

    def fake_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        _check_same(backward_name, grad=grad, gate=gate, up=up)
        grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
        return grad_gate, torch.empty_like(grad_gate)

    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    LIBRARY.impl(backward_name, backward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"patchkit::{name}", fake_forward, lib=LIBRARY)
    torch.library.register_fake(f"patchkit::{backward_name}", fake_backward, lib=LIBRARY)


def _register_kernels(activation: GatedActivation) -> None:
    """The Triton implementation for the devices that have one."""
    name, backward_name = activation.name, f"{activation.name}_backward"

    def forward(gate: Tensor, up: Tensor) -> Tensor:
        _check_same(name, gate=gate, up=up)
        if gate.dtype not in TRITON_DTYPES:
            return activation.reference(gate, up).contiguous()
        return activation.launch(gate, up)

    def backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        _check_same(backward_name, grad=grad, gate=gate, up=up)
        if gate.dtype not in TRITON_DTYPES:
            grad_gate, grad_up = activation.backward_reference(grad, gate, up)
            return grad_gate.contiguous(), grad_up.contiguous()
        return activation.launch_backward(grad, gate, up)

    for key in TRITON_DISPATCH_KEYS:
        LIBRARY.impl(name, forward, key)
        LIBRARY.impl(backward_name, backward, key)


def _register_recompute(activation: GatedActivation, name: str) -> None:
    """Every implementation of the backward op that writes over its gradient."""

    def reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        _check_same(name, grad=grad, gate=gate, up=up)
        _check_own(name, grad)
        grad_up, hidden = activation.backward_recompute_reference(grad, gate, up)
        return grad_up.contiguous(), hidden.contiguous()

    def kernel(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        if gate.dtype not in TRITON_DTYPES:
            return reference(grad, gate, up)
        _check_same(name, grad=grad, gate=gate, up=up)
        _check_own(name, grad)
        return activation.launch_backward_recompute(grad, gate, up)

    def fake(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        _check_same(name, grad=grad, gate=gate, up=up)
        grad_up = torch.empty_like(grad, memory_format=torch.contiguous_format)
        return grad_up, torch.empty_like(grad_up)

    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"patchkit::{name}", fake, lib=LIBRARY)
    if TRITON_AVAILABLE:
        for key in TRITON_DISPATCH_KEYS:
            LIBRARY.impl(name, kernel, key)


def _register_autograd(activation: GatedActivation, backward_op: Backward) -> None:
    """Derivatives of both ops: the backward op, and for the backward op the reference differentiated twice."""

    def save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return backward_op(grad, gate, up)

    # Without this a gradient penalty would find no derivative here, and torch warns and goes on without it.
    @torch.autograd.function.once_differentiable
    def double_backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            grad, gate, up = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
            hidden = activation.reference(gate, up)
            gradients = torch.autograd.grad(hidden, (gate, up), grad, create_graph=True)
            return torch.autograd.grad(gradients, (grad, gate, up), grad_outputs)

    torch.library.register_autograd(f"patchkit::{activation.name}", backward, setup_context=save_inputs, lib=LIBRARY)
    torch.library.register_autograd(
        f"patchkit::{activation.name}_backward", double_backward, setup_context=save_inputs, lib=LIBRARY
    )
