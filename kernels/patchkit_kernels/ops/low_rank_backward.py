"""Both products of a LoRA adapter that read dy, in one pass over it::

    dt = s dy B        [tokens, rank], a sum over the columns of dy
    dB = s dy^T t      [out, rank], a sum over its rows

dy is the largest of these by far, and two products of a library read it twice (LoRAFusion, arXiv 2510.00206, section
4.2, adds them up with atomics, whose order and so whose last bits change from run to run). A program takes a strip of
dy's columns and some of its rows: its part of dB stays in registers until the rows are through, its part of dt is
written for each block of rows. The parts are added up afterwards, always in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.exact_dot import exact_dot
from patchkit_kernels.ops.launch_sizes import LAUNCH_SIZES
from patchkit_kernels.ops.registration import register_op
from patchkit_kernels.ops.triton_support import TRITON_DTYPES, device_guard, jit, tl

MAX_RANK = 64
"""Beyond that, a program's part of dB does not fit into registers."""

SPAN = 2048
"""Rows per program: the parts of dB, float32, are ``2 rank / SPAN`` of a bfloat16 dy."""


@jit
def low_rank_backward_kernel(
    grad_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    reduced_ptr: tl.tensor,
    d_reduced_ptr: tl.tensor,
    d_factor_ptr: tl.tensor,
    scale: tl.tensor,
    tokens: tl.tensor,
    columns: tl.tensor,
    rank: tl.tensor,
    grad_row_stride: tl.tensor,
    grad_column_stride: tl.tensor,
    factor_row_stride: tl.tensor,
    factor_column_stride: tl.tensor,
    reduced_row_stride: tl.tensor,
    reduced_column_stride: tl.tensor,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Of one strip of columns and one span of rows, into ``d_reduced[strip, row]`` and ``d_factor[span, column]``."""
    # 64-bit before the products with strides, which can pass 2**31 elements although each factor fits 32 bits.
    strip, span = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = strip * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    index = tl.arange(0, BLOCK_RANK).to(tl.int64)
    is_column, is_index = column < columns, index < rank
    factor = tl.load(
        factor_ptr + ((column * factor_row_stride)[:, None] + (index * factor_column_stride)[None, :]),
        mask=is_column[:, None] & is_index[None, :],
        other=0.0,
    )
    d_factor = tl.zeros([BLOCK_OUT, BLOCK_RANK], tl.float32)
    first = span * SPAN
    for start in range(0, tl.minimum(tokens - first, SPAN), BLOCK_TOKENS):
        row = first + start + tl.arange(0, BLOCK_TOKENS)
        is_row = row < tokens
        grad = tl.load(
            grad_ptr + ((row * grad_row_stride)[:, None] + (column * grad_column_stride)[None, :]),
            mask=is_row[:, None] & is_column[None, :],
            other=0.0,
        )
        d_reduced = exact_dot(grad, factor, tl.zeros([BLOCK_TOKENS, BLOCK_RANK], tl.float32))
        tl.store(
            d_reduced_ptr + ((strip * tokens + row) * rank)[:, None] + index[None, :],
            d_reduced * scale,
            mask=is_row[:, None] & is_index[None, :],
        )
        reduced = tl.load(
            reduced_ptr + ((row * reduced_row_stride)[:, None] + (index * reduced_column_stride)[None, :]),
            mask=is_row[:, None] & is_index[None, :],
            other=0.0,
        )
        d_factor = exact_dot(tl.trans(grad), reduced, d_factor)
    tl.store(
        d_factor_ptr + ((span * columns + column) * rank)[:, None] + index[None, :],
        d_factor * scale,
        mask=is_column[:, None] & is_index[None, :],
    )


def launch(grad: Tensor, factor: Tensor, reduced: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Run the kernel and add up the parts: dt and dB in float32."""
    (tokens, columns), rank = grad.shape, factor.shape[1]
    size = LAUNCH_SIZES.value.low_rank_backward
    strips, spans = -(-columns // size.columns), -(-tokens // SPAN)
    d_reduced = torch.empty(strips, tokens, rank, dtype=torch.float32, device=grad.device)
    d_factor = torch.empty(spans, columns, rank, dtype=torch.float32, device=grad.device)
    if grad.numel() and rank:
        with device_guard(grad):
            low_rank_backward_kernel[(strips, spans)](
                grad,
                factor,
                reduced,
                d_reduced,
                d_factor,
                scale,
                tokens,
                columns,
                rank,
                *grad.stride(),
                *factor.stride(),
                *reduced.stride(),
                BLOCK_TOKENS=size.tokens,
                BLOCK_OUT=size.columns,
                BLOCK_RANK=max(16, 1 << (rank - 1).bit_length()),
                SPAN=SPAN,
                num_warps=size.warps,
                num_stages=2,
            )
    return d_reduced.sum(0), d_factor.sum(0)


def low_rank_backward_reference(grad: Tensor, factor: Tensor, reduced: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """:func:`low_rank_backward` in torch, in two products."""
    wide = _wide(grad, factor)
    wide_grad = grad.to(wide)
    return (wide_grad @ factor.to(wide)).mul_(scale), (wide_grad.t() @ reduced.to(wide)).mul_(scale)


def _wide(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _check(grad: Tensor, factor: Tensor, reduced: Tensor) -> None:
    """Raise ValueError unless the shapes, dtypes and devices fit each other."""
    tensors = {"grad": grad, "factor": factor, "reduced": reduced}
    fits = (
        grad.ndim == factor.ndim == reduced.ndim == 2
        and factor.shape == (grad.shape[1], reduced.shape[1])
        and reduced.shape[0] == grad.shape[0]
        and factor.dtype == reduced.dtype
        and len({tensor.device for tensor in tensors.values()}) == 1
    )
    if not fits:
        found = ", ".join(
            f"{name}: {tensor.dtype} {list(tensor.shape)} on {tensor.device}" for name, tensor in tensors.items()
        )
        raise ValueError(
            "patchkit::low_rank_backward takes grad [tokens, out], factor [out, r] and reduced [tokens, r] on one "
            f"device, the last two of one dtype, but got {found}"
        )


def _reference(grad: Tensor, factor: Tensor, reduced: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    _check(grad, factor, reduced)
    with torch.autocast(grad.device.type, enabled=False):  # it would make the products in bf16
        found = low_rank_backward_reference(grad, factor, reduced, scale)
    return found[0].to(factor.dtype), found[1].to(factor.dtype)


def _kernel(grad: Tensor, factor: Tensor, reduced: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if not {grad.dtype, factor.dtype} <= TRITON_DTYPES or factor.shape[-1] > MAX_RANK:
        return _reference(grad, factor, reduced, scale)
    _check(grad, factor, reduced)
    d_reduced, d_factor = launch(grad, factor, reduced, scale)
    return d_reduced.to(factor.dtype), d_factor.to(factor.dtype)


def _fake(grad: Tensor, factor: Tensor, reduced: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    _check(grad, factor, reduced)
    return reduced.new_empty(reduced.shape), factor.new_empty(factor.shape)


_op = register_op(
    "low_rank_backward(Tensor grad, Tensor factor, Tensor reduced, float scale) -> (Tensor, Tensor)",
    _reference,
    _fake,
    _kernel,
)


def low_rank_backward(grad: Tensor, factor: Tensor, reduced: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute dt and dB of an adapter: the op ``patchkit::low_rank_backward``. It has no derivative.

    Args:
        grad: dy, ``[tokens, out]``, any strides and floating dtype.
        factor: B, ``[out, r]``, any strides and floating dtype.
        reduced: t, ``[tokens, r]``, any strides, in B's dtype.
        scale: s, multiplied with the sums.

    Returns:
        ``(dt, dB)``: ``s dy B``, ``[tokens, r]``, and ``s dy^T t``, ``[out, r]``, contiguous, in B's dtype. Products
        are added up in float32, in float64 for such tensors, and rounded once. The same bits every time.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other.
    """
    result: tuple[Tensor, Tensor] = _op(grad, factor, reduced, scale)
    return result
