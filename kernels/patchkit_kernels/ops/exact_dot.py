"""Products of small matrices inside kernels, exact in each product or as exact as what becomes of them."""

from __future__ import annotations

from patchkit_kernels.ops.triton_support import jit, tl


@jit
def exact_dot(left: tl.tensor, right: tl.tensor, total: tl.tensor) -> tl.tensor:
    """``total + left @ right`` with exact products, added up in fp32.

    A bf16 operand meets an fp32 one as three bf16 pieces of that (:mod:`patchkit_kernels.ops.bf16_pieces`).
    """
    if left.dtype == right.dtype:
        return tl.dot(left, right, total, input_precision="ieee")  # not in TF32
    if left.dtype == tl.bfloat16 and right.dtype == tl.float32:
        first, rest = _first_piece(right)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(left, third, total)
        total = tl.dot(left, second, total)
        return tl.dot(left, first, total)
    return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")


@jit
def rounded_dot(left: tl.tensor, right: tl.tensor, total: tl.tensor, like: tl.tensor) -> tl.tensor:
    """``total + left @ right``, of which the sum with ``like`` is rounded to ``like``'s dtype.

    Where that is bf16, 16 bits of an fp32 operand are enough: what is left out is 2**-16 of ``|left| |right|``.
    """
    if like.dtype == tl.bfloat16 and left.dtype == tl.float32 and right.dtype == tl.float32:
        left_first, left_rest = _first_piece(left)
        right_first, right_rest = _first_piece(right)
        total = tl.dot(left_rest.to(tl.bfloat16), right_first, total)
        total = tl.dot(left_first, right_rest.to(tl.bfloat16), total)
        return tl.dot(left_first, right_first, total)
    return exact_dot(left, right, total)


@jit
def _first_piece(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The bf16 next to each fp32 number, and what it lacks."""
    first = x.to(tl.bfloat16)
    return first, tl.where(tl.abs(x) < float("inf"), x - first.to(tl.float32), 0.0)
