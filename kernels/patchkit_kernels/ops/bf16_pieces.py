"""A float32 matrix as a sum of bfloat16 matrices, which tensor cores multiply exactly.

bfloat16 has float32's exponents and 8 of its 24 bits, so that each number is the sum of three::

    p0 = bf16(x)        p1 = bf16(x - p0)        p2 = x - p0 - p1

Both differences are exact, and p2 needs 8 bits at most (Henry et al. 2019, https://arxiv.org/abs/1904.06376, section
III). The product of two bfloat16 numbers is exact in float32. So a product of bfloat16 rows with all three pieces,
added up in float32, has the error of one in float32.

The pieces are laid next to one another, in any order and as often as a product needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from patchkit_kernels.ops.registration import register_op
from patchkit_kernels.ops.triton_support import device_guard, jit, tl

Layout = Literal["above", "beside", "interleaved"]
"""Where the pieces of ``[rows, columns]`` lie: ``[pieces, rows, columns]``, ``[rows, pieces, columns]``, or
``[rows, columns, pieces]``."""

LAYOUTS: tuple[Layout, ...] = ("above", "beside", "interleaved")

BLOCK = 512
"""Elements per program of 4 warps: four a thread. The matrices are small, and a program more fills a device sooner."""


@jit
def bf16_pieces_kernel(
    x_ptr: tl.tensor,
    pieces_ptr: tl.tensor,
    scale: tl.tensor,
    elements: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    piece_step: tl.tensor,
    row_step: tl.tensor,
    column_step: tl.tensor,
    ORDER: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Piece ``ORDER // 4**k % 4`` of every element, for k below COUNT; ``*_step`` are the strides of the result."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = element < elements
    row, column = element // columns, element % columns
    x = tl.load(x_ptr + (row * row_stride + column * column_stride), mask=mask, other=0.0) * scale
    first = x.to(tl.bfloat16)
    is_finite = tl.abs(x) < float("inf")
    rest = tl.where(is_finite, x - first.to(tl.float32), 0.0)
    second = rest.to(tl.bfloat16)
    third = (rest - second.to(tl.float32)).to(tl.bfloat16)
    base = pieces_ptr + (row * row_step + column * column_step)
    for k in tl.static_range(COUNT):
        offset = tl.full([BLOCK], k, tl.int64) * piece_step
        if (ORDER >> (2 * k)) & 3 == 0:
            tl.store(base + offset, first, mask=mask)
        elif (ORDER >> (2 * k)) & 3 == 1:
            tl.store(base + offset, second, mask=mask)
        else:
            tl.store(base + offset, third, mask=mask)


def steps_of(rows: int, columns: int, count: int, layout: Layout) -> tuple[int, int, int]:
    """Elements from one piece, one row and one column to the next."""
    if layout == "above":
        return rows * columns, columns, 1
    if layout == "beside":
        return columns, count * columns, 1
    return 1, count * columns, count


def shape_of(rows: int, columns: int, count: int, layout: Layout) -> tuple[int, int, int]:
    """The shape of the pieces."""
    if layout == "above":
        return count, rows, columns
    if layout == "beside":
        return rows, count, columns
    return rows, columns, count


def launch(x: Tensor, scale: float, order: Sequence[int], layout: Layout) -> Tensor:
    """Run the kernel."""
    rows, columns = x.shape
    count = len(order)
    pieces = torch.empty(*shape_of(rows, columns, count, layout), dtype=torch.bfloat16, device=x.device)
    if x.numel():
        with device_guard(x):
            bf16_pieces_kernel[(-(-x.numel() // BLOCK),)](
                x,
                pieces,
                scale,
                x.numel(),
                columns,
                *x.stride(),
                *steps_of(rows, columns, count, layout),
                ORDER=sum(piece << (2 * k) for k, piece in enumerate(order)),
                COUNT=count,
                BLOCK=BLOCK,
            )
    return pieces


def bf16_pieces_reference(x: Tensor, scale: float, order: Sequence[int], layout: Layout) -> Tensor:
    """:func:`bf16_pieces` in torch."""
    if scale != 1.0:
        x = x * scale
    first = x.to(torch.bfloat16)
    pieces = [first]
    if any(order):
        rest = torch.where(x.isfinite(), x - first.to(torch.float32), 0.0)
        pieces.append(rest.to(torch.bfloat16))
        if max(order) > 1:
            pieces.append((rest - pieces[1].to(torch.float32)).to(torch.bfloat16))
    return torch.stack([pieces[piece] for piece in order], LAYOUTS.index(layout))


def _check(x: Tensor, order: Sequence[int], layout: str) -> None:
    if x.ndim != 2 or x.dtype != torch.float32:
        raise ValueError(f"patchkit::bf16_pieces takes a float32 matrix, but got {x.dtype} of {list(x.shape)}")
    if not order or not set(order) <= {0, 1, 2} or layout not in LAYOUTS:
        raise ValueError(
            f"patchkit::bf16_pieces takes pieces 0, 1 and 2 laid {', '.join(LAYOUTS)}, but got {list(order)}, {layout}"
        )


def _reference(x: Tensor, scale: float, order: Sequence[int], layout: Layout) -> Tensor:
    _check(x, order, layout)
    return bf16_pieces_reference(x, scale, order, layout)


def _kernel(x: Tensor, scale: float, order: Sequence[int], layout: Layout) -> Tensor:
    _check(x, order, layout)
    return launch(x, scale, order, layout)


def _fake(x: Tensor, scale: float, order: Sequence[int], layout: Layout) -> Tensor:
    _check(x, order, layout)
    return x.new_empty(shape_of(x.shape[0], x.shape[1], len(order), layout), dtype=torch.bfloat16)


_op = register_op("bf16_pieces(Tensor x, float scale, int[] order, str layout) -> Tensor", _reference, _fake, _kernel)


def bf16_pieces(x: Tensor, order: Sequence[int], layout: Layout, scale: float = 1.0) -> Tensor:
    """Take ``scale * x``, rounded to float32, apart into pieces: the op ``patchkit::bf16_pieces``.

    All three add up to it, exactly if it is 0 or lies between 2**-110 and bfloat16's largest number, 3.39e38; p0 and p1
    to 2**-17 of it. What is infinite, or rounds to it, has p0 alone. The op has no derivative.

    Args:
        x: float32 ``[rows, columns]``, any strides.
        order: which piece lies where: numbers of pieces, 0 to 2.
        layout: see :data:`Layout`.
        scale: as said.

    Returns:
        bfloat16, contiguous, of the layout's shape.

    Raises:
        ValueError: x is no float32 matrix, or there is no such piece or layout.
    """
    result: Tensor = _op(x, scale, order, layout)
    return result
