"""Products of bfloat16 rows with float32 adapters on tensor cores, with the error of products in float32.

PEFT keeps adapters in float32 over a bfloat16 base, and casts x and dy to float32 to multiply with them. Here they stay
as they are. The other operand, a small one, is taken apart (:mod:`patchkit_kernels.ops.bf16_pieces`), and the products
with its pieces are added up in float32::

    t  = x A^T       [x A0^T, x A1^T, x A2^T] in one product, whose parts are added
    dt = s dy B      likewise
    dA = dt^T x      dB = s dy^T t      likewise, of the pieces of dt and of s t

Where both operands are float32 and the result is bfloat16, 16 bits of each are enough, and the sum over three products
is one product over three times the rank::

    y  += s t B^T    [t0, t0, t1] [B0, B1, B0]^T      what is left out is 2**-16 of |t| |B|; y is rounded to 2**-9
    dx  = dt A       likewise

The scaling is multiplied with B, or with t, in float32, where PEFT multiplies the result with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.lora.choices import chosen, for_a_device
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.wide_sums import HAS_WIDE_OUTPUT, wide_product
from patchkit_kernels.ops.bf16_pieces import bf16_pieces

ALL = (0, 1, 2)
LEFT, RIGHT = (0, 0, 1), (0, 1, 0)
"""The pieces of two float32 operands that are multiplied with one another."""


def bf16x3(rows: Tensor, precision: Precision, elements: int | None = None) -> bool:
    """Whether products of these rows ``[..., n]`` with adapters are made of pieces.

    Args:
        rows: x, or the gradient of an output.
        elements: if given, of other rows of this dtype and device, that are asked about.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """
    _, lora, output, _ = precision
    if lora is not torch.float32 or output is not torch.bfloat16 or rows.dtype is not torch.bfloat16:
        return False
    choices = chosen()
    return choices.bf16x3 and (choices.emulated or HAS_WIDE_OUTPUT) and for_a_device(rows, elements)


def times_transposed(rows: Tensor, factor: Tensor, scale: float = 1.0) -> Tensor:
    """``scale rows @ factor^T`` in float32, ``[tokens, r]``.

    Args:
        rows: bfloat16 ``[tokens, n]``.
        factor: float32 ``[r, n]``.
        scale: multiplied with the factor.
    """
    pieces = bf16_pieces(factor, ALL, "above", scale).view(-1, factor.shape[1])
    return wide_product(rows, pieces.t()).view(rows.shape[0], len(ALL), factor.shape[0]).sum(1)


def times(rows: Tensor, factor: Tensor, scale: float = 1.0) -> Tensor:
    """``scale rows @ factor`` in float32, ``[tokens, r]``, of a factor ``[n, r]``: as :func:`times_transposed`."""
    return times_beside(rows, factor, scale).sum(1)


def times_beside(rows: Tensor, factor: Tensor, scale: float = 1.0) -> Tensor:
    """The parts of :func:`times`, to be added up: ``[tokens, 3, r]``."""
    pieces = bf16_pieces(factor, ALL, "beside", scale).view(factor.shape[0], -1)
    return wide_product(rows, pieces).view(rows.shape[0], len(ALL), factor.shape[1])


def over_tokens(left: Tensor, rows: Tensor, scale: float = 1.0) -> Tensor:
    """``scale left^T @ rows`` in float32, ``[r, n]``.

    Args:
        left: float32 ``[tokens, r]``.
        rows: bfloat16 ``[tokens, n]``.
        scale: multiplied with ``left``.
    """
    pieces = bf16_pieces(left, ALL, "beside", scale).view(left.shape[0], -1)
    return wide_product(pieces.t(), rows).view(len(ALL), left.shape[1], rows.shape[1]).sum(0)


def over_tokens_of_rows(rows: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """``scale rows^T @ right`` in float32, ``[n, r]``, of ``right`` ``[tokens, r]``: as :func:`over_tokens`."""
    pieces = bf16_pieces(right, ALL, "beside", scale).view(right.shape[0], -1)
    return wide_product(rows.t(), pieces).view(rows.shape[1], len(ALL), right.shape[1]).sum(1)


def left_pieces(left: Tensor) -> Tensor:
    """The left operand ``[tokens, r]`` of a product that is rounded to bfloat16: ``[tokens, 3 r]``."""
    return bf16_pieces(left, LEFT, "interleaved").view(left.shape[0], -1)


def right_pieces(right: Tensor, scale: float = 1.0) -> Tensor:
    """The right operand, given as ``[out, r]``, of ``left @ right^T``: ``[out, 3 r]``, scaled."""
    return bf16_pieces(right, RIGHT, "interleaved", scale).view(right.shape[0], -1)


def low_rank_operands(left: Tensor, right: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Operands whose product in bfloat16 is ``scale left @ right``, rounded once.

    Args:
        left: float32 ``[tokens, r]``.
        right: float32 ``[r, n]``.
        scale: multiplied with ``right``.
    """
    beside = bf16_pieces(left, LEFT, "beside").view(left.shape[0], -1)
    return beside, bf16_pieces(right, RIGHT, "above", scale).view(-1, right.shape[1])


def low_rank_product(left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """``scale left @ right`` rounded to bfloat16, ``[tokens, n]``, of float32 ``[tokens, r]`` and ``[r, n]``."""
    return torch.mm(*low_rank_operands(left, right, scale))
