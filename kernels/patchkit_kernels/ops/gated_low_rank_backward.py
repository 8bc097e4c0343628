"""The rank-r products of a gated MLP's backward that read d_hidden, hidden, d_gate and d_up, with the activation::

    d_hidden = dy Wd + dt_d Ad                                           [tokens, n]
    d_gate   = d_hidden * up * act'(gate)      d_up = d_hidden * act(gate)
    dAd      = dt_d^T hidden                                             [rank, n], a sum over rows
    dBg      = s_g d_gate^T t_g                dBu  = s_u d_up^T t_u     [n, rank], sums over rows
    dt_g     = s_g d_gate Bg                   dt_u = s_u d_up Bu        [tokens, rank], sums over columns

Here ``dy Wd`` is there, and hidden is made again of gate and up and not written. A library reads d_gate and d_up twice
more for these, hidden once, and d_hidden. A program takes a strip of columns and some rows: its parts of dA and dB stay
in registers until the rows are through, its part of dt is written for each block of rows. The parts are added up
afterwards, always in the same order. The forward: :mod:`patchkit_kernels.ops.gated_low_rank`.
"""

from __future__ import annotations

from typing import NamedTuple

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

FLOAT32_RANK = 16
"""The greatest rank where gate and up are float32: products of such operands run without tensor cores, and beyond it
kilobytes of each thread do not fit into registers."""

SPAN = 1024
"""Rows per program: the parts of dA and both dB, float32, are ``6 rank / SPAN`` of a bfloat16 gate."""


class GatedGradients(NamedTuple):
    """What :func:`gated_low_rank_backward` returns.

    Attributes:
        d_up: ``[tokens, n]`` in gate's dtype.
        d_reduced: dt of gate, and beside it dt of up, ``[tokens, r + r]``.
        d_gate_factor: dB of gate, ``[n, r]``.
        d_up_factor: dB of up, ``[n, r]``.
        d_down_factor: dA of down, ``[r, n]``.
    """

    d_up: Tensor
    d_reduced: Tensor
    d_gate_factor: Tensor
    d_up_factor: Tensor
    d_down_factor: Tensor


@jit
def gated_low_rank_backward_kernel(
    grad_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    gate_reduced_ptr: tl.tensor,
    up_reduced_ptr: tl.tensor,
    down_reduced_ptr: tl.tensor,
    gate_factor_ptr: tl.tensor,
    up_factor_ptr: tl.tensor,
    down_factor_ptr: tl.tensor,
    d_up_ptr: tl.tensor,
    d_reduced_ptr: tl.tensor,
    d_gate_factor_ptr: tl.tensor,
    d_up_factor_ptr: tl.tensor,
    d_down_factor_ptr: tl.tensor,
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
    down_reduced_row_stride: tl.tensor,
    down_reduced_column_stride: tl.tensor,
    gate_factor_row_stride: tl.tensor,
    gate_factor_column_stride: tl.tensor,
    up_factor_row_stride: tl.tensor,
    up_factor_column_stride: tl.tensor,
    down_factor_row_stride: tl.tensor,
    down_factor_column_stride: tl.tensor,
    VALUE_AND_GRADIENT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """Of one strip of columns and one span of rows; d_gate is written over grad.

    Into ``d_reduced[strip, row]``, ``d_gate_factor[span, column]``, ``d_up_factor[span, column]`` and
    ``d_down_factor[span, :, column]``.
    """
    # 64-bit before the products with strides, which can pass 2**31 elements although each factor fits 32 bits.
    strip, span = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = strip * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    index = tl.arange(0, BLOCK_RANK).to(tl.int64)
    is_column = column < columns
    of_gate, of_up, of_down = index < gate_rank, index < up_rank, index < down_rank
    d_gate_factor = tl.zeros([BLOCK_COLUMNS, BLOCK_RANK], tl.float32)
    d_up_factor = tl.zeros([BLOCK_COLUMNS, BLOCK_RANK], tl.float32)
    d_down_factor = tl.zeros([BLOCK_COLUMNS, BLOCK_RANK], tl.float32)
    both_ranks = gate_rank + up_rank
    first = span * SPAN
    for start in range(0, tl.minimum(tokens - first, SPAN), BLOCK_TOKENS):
        row = first + start + tl.arange(0, BLOCK_TOKENS)
        is_row = row < tokens
        own, is_own = column[:, None] + (row * columns)[None, :], is_column[:, None] & is_row[None, :]
        # Each program reads and writes the same elements of grad, each once, so the order of programs does not matter.
        base = tl.load(grad_ptr + own, mask=is_own, other=0.0)
        gate = tl.load(gate_ptr + own, mask=is_own, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + own, mask=is_own, other=0.0).to(tl.float32)
        reduced = load_tile(
            down_reduced_ptr, row, index, down_reduced_row_stride, down_reduced_column_stride, tokens, down_rank
        )
        # Read for each block of rows, from the cache: B and A would take registers all the time.
        factor = load_tile(
            down_factor_ptr, column, index, down_factor_column_stride, down_factor_row_stride, columns, down_rank
        )
        low_rank = rounded_dot(factor, tl.trans(reduced), tl.zeros([BLOCK_COLUMNS, BLOCK_TOKENS], tl.float32), base)
        grad = base.to(tl.float32) + low_rank
        value, d_gate = VALUE_AND_GRADIENT(gate, grad * up)
        hidden = (value * up).to(base.dtype)
        d_up = (grad * value).to(base.dtype)
        d_gate = d_gate.to(base.dtype)
        tl.store(grad_ptr + own, d_gate, mask=is_own)
        tl.store(d_up_ptr + own, d_up, mask=is_own)
        d_down_factor = exact_dot(hidden, reduced, d_down_factor)
        to_sum = ((strip * tokens + row) * both_ranks)[:, None] + index[None, :]
        factor = load_tile(
            gate_factor_ptr, column, index, gate_factor_row_stride, gate_factor_column_stride, columns, gate_rank
        )
        part = exact_dot(tl.trans(d_gate), factor, tl.zeros([BLOCK_TOKENS, BLOCK_RANK], tl.float32))
        tl.store(d_reduced_ptr + to_sum, part * gate_scale, mask=is_row[:, None] & of_gate[None, :])
        reduced = load_tile(
            gate_reduced_ptr, row, index, gate_reduced_row_stride, gate_reduced_column_stride, tokens, gate_rank
        )
        d_gate_factor = exact_dot(d_gate, reduced, d_gate_factor)
        factor = load_tile(
            up_factor_ptr, column, index, up_factor_row_stride, up_factor_column_stride, columns, up_rank
        )
        part = exact_dot(tl.trans(d_up), factor, tl.zeros([BLOCK_TOKENS, BLOCK_RANK], tl.float32))
        tl.store(d_reduced_ptr + (to_sum + gate_rank), part * up_scale, mask=is_row[:, None] & of_up[None, :])
        reduced = load_tile(
            up_reduced_ptr, row, index, up_reduced_row_stride, up_reduced_column_stride, tokens, up_rank
        )
        d_up_factor = exact_dot(d_up, reduced, d_up_factor)
    at = span * columns + column
    tl.store(
        d_gate_factor_ptr + (at * gate_rank)[:, None] + index[None, :],
        d_gate_factor * gate_scale,
        mask=is_column[:, None] & of_gate[None, :],
    )
    tl.store(
        d_up_factor_ptr + (at * up_rank)[:, None] + index[None, :],
        d_up_factor * up_scale,
        mask=is_column[:, None] & of_up[None, :],
    )
    tl.store(
        d_down_factor_ptr + ((span * down_rank + index) * columns)[None, :] + column[:, None],
        d_down_factor,
        mask=is_column[:, None] & of_down[None, :],
    )


def launch(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> GatedGradients:
    """Run the kernel and add up the parts: all but d_up in float32."""
    tokens, columns = grad.shape
    ranks = [factors[0].shape[1], factors[1].shape[1], factors[2].shape[0]]
    sizes = LAUNCH_SIZES.value
    in_16_bits = factors[0].dtype.itemsize == 2
    size = sizes.gated_low_rank_backward if in_16_bits else sizes.gated_low_rank_backward_float32
    strips, spans = -(-columns // size.columns), -(-tokens // SPAN)
    d_up = torch.empty(tokens, columns, dtype=grad.dtype, device=grad.device)
    shapes = [
        (strips, tokens, ranks[0] + ranks[1]),
        (spans, columns, ranks[0]),
        (spans, columns, ranks[1]),
        (spans, ranks[2], columns),
    ]
    parts = [torch.empty(*shape, dtype=torch.float32, device=grad.device) for shape in shapes]
    if grad.numel():
        with device_guard(grad):
            gated_low_rank_backward_kernel[(strips, spans)](
                grad,
                gate.contiguous(),
                up.contiguous(),
                *reduced,
                *factors,
                d_up,
                *parts,
                *scales,
                tokens,
                columns,
                *ranks,
                *[stride for tensor in (*reduced, *factors) for stride in tensor.stride()],
                VALUE_AND_GRADIENT=GATED[activation].activation.value_and_gradient,
                BLOCK_TOKENS=size.tokens,
                BLOCK_COLUMNS=size.columns,
                BLOCK_RANK=block_of_rank(max(ranks)),
                SPAN=SPAN,
                num_warps=size.warps,
                num_stages=2,
            )
    return GatedGradients(d_up, *[part.sum(0) for part in parts])


def gated_low_rank_backward_reference(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> GatedGradients:
    """:func:`gated_low_rank_backward` in torch; all but d_up are not rounded."""
    wide, function = wide_dtype(grad, factors[0]), GATED[activation].activation
    t_gate, t_up, dt_down = (t.to(wide) for t in reduced)
    b_gate, b_up, a_down = (factor.to(wide) for factor in factors)
    gate, up = gate.to(wide), up.to(wide)
    d_hidden = torch.addmm(grad.to(wide), dt_down, a_down)
    value = function.function(gate)
    hidden = (value * up).to(grad.dtype).to(wide)
    d_up = value.mul_(d_hidden).to(grad.dtype)
    grad.copy_(function.gradient_(d_hidden.mul_(up), gate))
    d_gate, wide_d_up = grad.to(wide), d_up.to(wide)
    d_reduced = torch.cat([(d_gate @ b_gate).mul_(scales[0]), (wide_d_up @ b_up).mul_(scales[1])], 1)
    return GatedGradients(
        d_up,
        d_reduced,
        (d_gate.t() @ t_gate).mul_(scales[0]),
        (wide_d_up.t() @ t_up).mul_(scales[1]),
        dt_down.t() @ hidden,
    )


Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _rounded(found: GatedGradients, dtype: torch.dtype) -> Results:
    d_up, *others = found
    d_reduced, d_gate_factor, d_up_factor, d_down_factor = (tensor.to(dtype) for tensor in others)
    return d_up, d_reduced, d_gate_factor, d_up_factor, d_down_factor


def _reference(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> Results:
    _check(grad, gate, up, reduced, factors, scales, activation)
    with torch.autocast(grad.device.type, enabled=False):  # it would make the products in bf16
        found = gated_low_rank_backward_reference(grad, gate, up, reduced, factors, scales, activation)
    return _rounded(found, factors[0].dtype)


def _kernel(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> Results:
    if not fits_kernel(grad, factors, FLOAT32_RANK):
        return _reference(grad, gate, up, reduced, factors, scales, activation)
    _check(grad, gate, up, reduced, factors, scales, activation)
    return _rounded(launch(grad, gate, up, reduced, factors, scales, activation), factors[0].dtype)


def _fake(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> Results:
    _check(grad, gate, up, reduced, factors, scales, activation)
    b_gate, b_up, a_down = factors
    d_reduced = b_gate.new_empty((grad.shape[0], b_gate.shape[1] + b_up.shape[1]))
    small = [factor.new_empty(factor.shape) for factor in (b_gate, b_up, a_down)]
    return grad.new_empty(grad.shape), d_reduced, small[0], small[1], small[2]


def _check(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> None:
    """Raise ValueError unless the tensors fit each other and the first can be written over."""
    wide = {"grad": grad, "gate": gate, "up": up}
    check_low_rank("gated_low_rank_backward", wide, ["grad"], reduced, factors, scales, activation)


_op = register_op(
    "gated_low_rank_backward(Tensor(a!) grad, Tensor gate, Tensor up, Tensor[] reduced, Tensor[] factors, "
    "float[] scales, str activation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _reference,
    _fake,
    _kernel,
)


def gated_low_rank_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    reduced: list[Tensor],
    factors: list[Tensor],
    scales: list[float],
    activation: Activation,
) -> GatedGradients:
    """Compute d_gate, d_up and the rank-r gradients: ``patchkit::gated_low_rank_backward``. It has no derivative.

    Args:
        grad: ``dy W`` of down, ``[tokens, n]``, contiguous, any floating dtype. It becomes d_gate.
        gate: as :func:`~patchkit_kernels.ops.gated_low_rank.gated_low_rank` left it, ``[tokens, n]`` in grad's dtype.
        up: likewise.
        reduced: t of gate and of up, and dt of down (its scale included), ``[tokens, r]`` each, any strides.
        factors: B of gate and of up, ``[n, r]`` each, and A of down, ``[r, n]``; any strides. They and ``reduced`` are
            of one dtype; the three ranks may differ.
        scales: s of gate and of up.
        activation: its name.

    Returns:
        See :class:`GatedGradients`: contiguous; d_up computed in float32 and rounded once, as is d_gate; the others are
        of the rounded d_gate, d_up and hidden, in the factors' dtype, added up in float32 and rounded once (in float64
        where a tensor is). The same bits every time.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, grad is not contiguous, or there is no such
            activation.
    """
    return GatedGradients(*_op(grad, gate, up, reduced, factors, scales, activation))
