"""The rank-r products of a gated MLP's forward that read gate, up and hidden, in one pass with the activation::

    gate   = x Wg^T + s_g t_g Bg^T       up = x Wu^T + s_u t_u Bu^T       [tokens, n]
    hidden = act(gate) * up                                              [tokens, n]
    t_down = hidden Ad^T                                                 [tokens, rank]

A library reads and writes gate and up once more for each adapter, and reads hidden once more. Here the products with W
are there, the rest is added while they are in registers. A program takes some rows and a span of columns; its part of
t_down stays in registers until the columns are through. The parts are added up afterwards, always in the same order.
The backward: :mod:`patchkit_kernels.ops.gated_low_rank_backward`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.activations import GATED, Activation
from patchkit_kernels.ops.exact_dot import exact_dot, rounded_dot
from patchkit_kernels.ops.gated_low_rank_operands import (
    block_of_rank,
    check_low_rank,
    fits_kernel,
    load_tile,
    wide_dtype,
)
from patchkit_kernels.ops.launch_sizes import LAUNCH_SIZES
from patchkit_kernels.ops.registration import register_op
from patchkit_kernels.ops.triton_support import device_guard, jit, tl

SPAN = 2048
"""Columns per program: the parts of t_down, float32, are ``2 rank / SPAN`` of a bfloat16 hidden."""


@jit
def gated_low_rank_kernel(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    gate_reduced_ptr: tl.tensor,
    up_reduced_ptr: tl.tensor,
    gate_factor_ptr: tl.tensor,
    up_factor_ptr: tl.tensor,
    down_factor_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    reduced_ptr: tl.tensor,
    gate_scale: tl.tensor,
    up_scale: tl.tensor,
    tokens: tl.tensor,
    columns: tl.tensor,
    gate_rank: tl.tensor,
    up_rank: tl.tensor,
    down_rank: tl.tensor,
    gate_reduced_row_stride: tl.tensor,
    gate_reduced_column_stride: tl.tensor,
    up_reduced_row_stride: tl.tensor,
    up_reduced_column_stride: tl.tensor,
    gate_factor_row_stride: tl.tensor,
    gate_factor_column_stride: tl.tensor,
    up_factor_row_stride: tl.tensor,
    up_factor_column_stride: tl.tensor,
    down_factor_row_stride: tl.tensor,
    down_factor_column_stride: tl.tensor,
    VALUE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Of some rows and one span of columns: gate and up over their base products, hidden, ``reduced[span, row]``."""
    # 64-bit before the products with strides, which can pass 2**31 elements although each factor fits 32 bits.
    block, span = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    index = tl.arange(0, BLOCK_RANK).to(tl.int64)
    is_row = row < tokens
    gate_reduced = load_tile(
        gate_reduced_ptr, row, index, gate_reduced_row_stride, gate_reduced_column_stride, tokens, gate_rank
    )
    up_reduced = load_tile(up_reduced_ptr, row, index, up_reduced_row_stride, up_reduced_column_stride, tokens, up_rank)
    reduced = tl.zeros([BLOCK_TOKENS, BLOCK_RANK], tl.float32)
    first = span * SPAN
    for start in range(0, tl.minimum(columns - first, SPAN), BLOCK_COLUMNS):
        column = first + start + tl.arange(0, BLOCK_COLUMNS)
        is_column = column < columns
        own, is_own = (row * columns)[:, None] + column[None, :], is_row[:, None] & is_column[None, :]
        # Each program reads and writes the same elements, each once, so the order of programs does not matter.
        base = tl.load(gate_ptr + own, mask=is_own, other=0.0)
        factor = load_tile(
            gate_factor_ptr, index, column, gate_factor_column_stride, gate_factor_row_stride, gate_rank, columns
        )
        low_rank = rounded_dot(gate_reduced, factor, tl.zeros([BLOCK_TOKENS, BLOCK_COLUMNS], tl.float32), base)
        gate = (base.to(tl.float32) + low_rank * gate_scale).to(base.dtype)
        tl.store(gate_ptr + own, gate, mask=is_own)
        base = tl.load(up_ptr + own, mask=is_own, other=0.0)
        factor = load_tile(
            up_factor_ptr, index, column, up_factor_column_stride, up_factor_row_stride, up_rank, columns
        )
        low_rank = rounded_dot(up_reduced, factor, tl.zeros([BLOCK_TOKENS, BLOCK_COLUMNS], tl.float32), base)
        up = (base.to(tl.float32) + low_rank * up_scale).to(base.dtype)
        tl.store(up_ptr + own, up, mask=is_own)
        # Of the rounded gate and up, which backward reads.
        hidden = (VALUE(gate.to(tl.float32)) * up.to(tl.float32)).to(base.dtype)
        tl.store(hidden_ptr + own, hidden, mask=is_own)
        factor = load_tile(
            down_factor_ptr, column, index, down_factor_column_stride, down_factor_row_stride, columns, down_rank
        )
        reduced = exact_dot(hidden, factor, reduced)
    tl.store(
        reduced_ptr + ((span * tokens + row) * down_rank)[:, None] + index[None, :],
        reduced,
        mask=is_row[:, None] & (index < down_rank)[None, :],
    )


def launch(
    gate: Tensor, up: Tensor, reduced: list[Tensor], factors: list[Tensor], scales: list[float], activation: Activation
) -> tuple[Tensor, Tensor]:
    """Run the kernel and add up the parts: hidden, and t_down in float32."""
    tokens, columns = gate.shape
    ranks = [factors[0].shape[1], factors[1].shape[1], factors[2].shape[0]]
    size = LAUNCH_SIZES.value.gated_low_rank
    blocks, spans = -(-tokens // size.tokens), -(-columns // SPAN)
    hidden = torch.empty(tokens, columns, dtype=gate.dtype, device=gate.device)
    parts = torch.empty(spans, tokens, ranks[2], dtype=torch.float32, device=gate.device)
    if gate.numel():
        with device_guard(gate):
            gated_low_rank_kernel[(blocks, spans)](
                gate,
                up,
                *reduced,
                *factors,
                hidden,
                parts,
                *scales,
                tokens,
                columns,
                *ranks,
                *[stride for tensor in (*reduced, *factors) for stride in tensor.stride()],
                VALUE=GATED[activation].activation.value,
                BLOCK_TOKENS=size.tokens,
                BLOCK_COLUMNS=size.columns,
                BLOCK_RANK=block_of_rank(max(ranks)),
                SPAN=SPAN,
                num_warps=size.warps,
                num_stages=2,
            )
    return hidden, parts.sum(0)


def gated_low_rank_reference(
    gate: Tensor, up: Tensor, reduced: list[Tensor], factors: list[Tensor], scales: list[float], activation: Activation
) -> tuple[Tensor, Tensor]:
    """:func:`gated_low_rank` in torch; t_down is not rounded."""
    wide = wide_dtype(gate, factors[0])
    for base, t, factor, scale in zip((gate, up), reduced, factors, scales, strict=False):
        base.copy_(torch.add(base.to(wide), t.to(wide) @ factor.to(wide).t(), alpha=scale))
    value = GATED[activation].activation.function(gate.to(wide))
    hidden = value.mul_(up.to(wide)).to(gate.dtype)
    return hidden, hidden.to(wide) @ factors[2].to(wide).t()


def _reference(
    gate: Tensor, up: Tensor, reduced: list[Tensor], factors: list[Tensor], scales: list[float], activation: Activation
) -> tuple[Tensor, Tensor]:
    _check(gate, up, reduced, factors, scales, activation)
    with torch.autocast(gate.device.type, enabled=False):  # it would make the products in bf16
        hidden, t_down = gated_low_rank_reference(gate, up, reduced, factors, scales, activation)
    return hidden, t_down.to(factors[2].dtype)


def _kernel(
    gate: Tensor, up: Tensor, reduced: list[Tensor], factors: list[Tensor], scales: list[float], activation: Activation
) -> tuple[Tensor, Tensor]:
    if not fits_kernel(gate, factors):
        return _reference(gate, up, reduced, factors, scales, activation)
    _check(gate, up, reduced, factors, scales, activation)
    hidden, t_down = launch(gate, up, reduced, factors, scales, activation)
    return hidden, t_down.to(factors[2].dtype)


def _fake(
    gate: Tensor, up: Tensor, reduced: list[Tensor], factors: list[Tensor], scales: list[float], activation: Activation
) -> tuple[Tensor, Tensor]:
    _check(gate, up, reduced, factors, scales, activation)
    return gate.new_empty(gate.shape), factors[2].new_empty((gate.shape[0], factors[2].shape[0]))


def _check(
    gate: Tensor, up: Tensor, reduced: list[Tensor], factors: list[Tensor], scales: list[float], activation: Activation
) -> None:
    """Raise ValueError unless the tensors fit each other and the first two can be written over."""
    check_low_rank("gated_low_rank", {"gate": gate, "up": up}, ["gate", "up"], reduced, factors, scales, activation)


_op = register_op(
    "gated_low_rank(Tensor(a!) gate, Tensor(b!) up, Tensor[] reduced, Tensor[] factors, float[] scales, "
    "str activation) -> (Tensor, Tensor)",
    _reference,
    _fake,
    _kernel,
)


def gated_low_rank(
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> tuple[Tensor, Tensor]:
    """Complete gate and up, and compute hidden and its t: the op ``patchkit::gated_low_rank``. It has no derivative.

    Args:
        gate: the base's product, ``[tokens, n]``, contiguous, any floating dtype. Written over: ``+ s t B^T`` of its
            adapter, added in float32 and rounded once.
        up: likewise, in the same dtype.
        reduced: t of gate and of up, ``[tokens, r]`` each, any strides.
        factors: B of gate and of up, ``[n, r]`` each, and A of down, ``[r, n]``; any strides. They and t are of one
            dtype; the three ranks may differ.
        scales: s of gate and of up.
        activation: its name.

    Returns:
        ``(hidden, t_down)``: ``act(gate) * up`` of the rounded gate and up, in their dtype, computed in float32 and
        rounded once; and ``hidden A^T`` of the rounded hidden, ``[tokens, r]``, contiguous, in the factors' dtype,
        added up in float32 (both in float64 where a tensor is). The same bits every time.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, gate or up is not contiguous, or there is no such
            activation.
    """
    result: tuple[Tensor, Tensor] = _op(gate, up, reduced, factors, scales, activation)
    return result
