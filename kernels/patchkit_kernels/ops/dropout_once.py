"""Dropout that is drawn once, in forward, and multiplied with once for each tensor that it is for, in backward.

:mod:`patchkit_kernels.ops.dropout` has the ops and the form of a packed mask. Here is what a fused function does with
them where nothing has to see the ops: what ``F.dropout`` yields is used as it is, on a CPU the mask is packed and
unpacked in a few calls, and on a GPU kernels are launched without the dispatcher, or for a small input not at all.
Not for ``torch.compile``.

A mask has one of three forms. Its dtype says which: uint8 for bits, bool for what torch has drawn on a GPU
(:data:`UNPACKED_ON_GPU`), and on a CPU a floating dtype for what x was multiplied with (:data:`UNPACKED`).

Where x is read in another dtype than dropout is drawn in, as under autocast, the mask alone is multiplied with, zeros
and ones, and the scale ``1 / (1 - p)`` is left to a product that scales anyway: see :func:`scale_left`. A product with
zeros and ones is exact in every dtype, so that nothing has to be cast to the one in which dropout is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from patchkit_kernels.ops.add_masked import add_masked_
from patchkit_kernels.ops.casts import cast_one
from patchkit_kernels.ops.dropout import (
    FUSED_DROPOUT_DEVICES,
    draw_mask,
    launch_masked,
    launch_pack_mask,
    masked,
    pack_mask,
    unpack_table,
)
from patchkit_kernels.ops.dropout_in_pieces import draws_in_pieces
from patchkit_kernels.ops.registration import dispatch_modes, runs_kernel
from patchkit_kernels.ops.triton_support import TRITON_DTYPES

SMALL = 2**15
"""Elements of an input up to which several masks for it are drawn into one tensor: for calls, not for memory."""

UNPACKED = 2**13
"""Elements of an input up to which a mask is kept in the dtype in which x is read, and not in bits: at most 32 KB of
float32, for four calls less. Packing and unpacking took a third of the time that dropout adds to a block of a small
model. What it has left of x is kept too, as much again, as ``F.dropout`` keeps both, for two calls less.
"""

UNPACKED_ON_GPU = 2**16
"""The same for a GPU, where the mask is kept as torch draws it, a byte for each element: at most 64 KB. Backward then
takes torch's own operations, whose launches take a third of the host's time of those of a kernel of Triton.
"""

_dropout_backward = torch.ops.aten.native_dropout_backward.default


def drop(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """``F.dropout(x, p, training=True)`` and its mask; the generator is left as that call leaves it.

    Args:
        x: ``[..., n]``, floating point, any strides.
        p: the probability of a zero, above 0 and below 1.

    Returns:
        What it yields, and the mask in bits; on a GPU that of few elements as bool, ``[rows, n]``.
    """
    if x.device.type in FUSED_DROPOUT_DEVICES and x.numel():
        dropped, mask = torch.native_dropout(x, p, True)
        if x.numel() <= UNPACKED_ON_GPU:
            return dropped, mask.reshape(-1, x.shape[-1])
        return dropped, _bits(mask, x)
    if x.is_cpu and x.numel() and not dispatch_modes():
        # As in ATen/native/Dropout.cpp: into a tensor like x, since the draws may depend on its dtype and strides.
        noise = torch.empty_like(x).bernoulli_(1.0 - p)
        packed = _pack(noise)
        return noise.div_(1.0 - p).mul_(x), packed
    packed = pack_mask(draw_mask(x, p))
    return masked(x, packed, 1.0 / (1.0 - p)), packed


def drop_each(
    x: Tensor, rows: Tensor, probabilities: Sequence[float], dtype: torch.dtype, drawn: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """What :func:`drop` yields of an input for each probability in turn, as rows, and its mask.

    Args:
        x: ``[..., n]``.
        rows: the same as rows, perhaps in the dtype in which they are read.
        probabilities: as there.
        dtype: in which they are read.
        drawn: for which dropout is drawn: the draws depend on it.
    """
    small = x.numel() <= UNPACKED_ON_GPU
    if drawn is x.dtype or drawn is dtype or small or not runs_kernel(rows) or dtype not in TRITON_DTYPES:
        x = cast_one(x, drawn)  # once for all
        for p in probabilities:
            dropped, mask = drop(x, p)
            yield cast_one(dropped.reshape(rows.shape), dtype), mask
        return
    # The draws alone are of the other dtype: x is neither cast to it nor from it.
    like = torch.empty_like(x, dtype=drawn)
    for p in probabilities:
        packed = _bits(draw_mask(like, p), rows)
        yield drop_again(rows, packed, p, dtype), packed


def drop_again(rows: Tensor, mask: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """The elements of ``[rows, n]`` that a mask keeps, scaled, in this dtype: not for a mask of a floating dtype.

    They are rounded once, to this dtype.
    """
    scale = 1.0 / (1.0 - p)
    if mask.dtype is torch.bool:
        return cast_one(_dropout_backward(_widened(rows, dtype), mask, scale), dtype)
    if not runs_kernel(rows) or dtype not in TRITON_DTYPES:
        return cast_one(masked(_widened(rows, dtype), mask, scale), dtype)
    result = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    launch_masked(rows, mask, scale, result)
    return result


def reads_any_dtype(rows: Tensor, mask: Tensor) -> bool:
    """Whether :func:`drop_again` need not be given rows in the dtype in which dropout was drawn."""
    return mask.dtype is torch.bool or bool(runs_kernel(rows))


def add_dropped_again_(total: Tensor, rows: Tensor, mask: Tensor, p: float) -> None:
    """Add what a mask keeps of ``[rows, n]``, scaled, to a buffer of that shape, in whose dtype it is scaled."""
    scale = 1.0 / (1.0 - p)
    if mask.dtype is torch.bool:
        total.add_(_dropout_backward(_widened(rows, total.dtype), mask, scale))
    else:
        add_masked_(total, rows, mask, scale)


def _widened(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in a dtype that holds both its numbers and those of another dtype, so that nothing is rounded twice."""
    return rows if rows.dtype is dtype else cast_one(rows, torch.promote_types(rows.dtype, dtype))


def _bits(mask: Tensor, x: Tensor) -> Tensor:
    """Those of torch's mask of x, without the dispatcher where a kernel makes them."""
    return launch_pack_mask(mask) if runs_kernel(x) else pack_mask(mask)


def draws_together(x: Tensor, probabilities: Sequence[float]) -> bool:
    """Whether masks of these probabilities for x ``[..., n]`` are drawn by :func:`drop_together`: small, and simple."""
    size = x.numel()
    if not 0 < size <= SMALL or size % 8 or not x.is_cpu or dispatch_modes() or not x.is_contiguous():
        return False
    count = len(probabilities)
    return count == 1 or probabilities.count(probabilities[0]) == count


def drop_together(x: Tensor, probabilities: Sequence[float], drawn: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`drop` of one input for each probability in turn, in few calls, but for :func:`scale_left`.

    Args:
        x: ``[rows, n]``, for which :func:`draws_together`, in the dtype in which it is read.
        probabilities: as many as there are masks.
        drawn: the dtype for which dropout is drawn: the draws depend on it.

    Returns:
        What they yield, ``[masks, rows, n]``, of one mask ``[rows, n]``; and the packed masks, one after the other, or
        for an input of few elements (:data:`UNPACKED`) what it was multiplied with, in its dtype and that shape.
    """
    count, p, dtype = len(probabilities), probabilities[0], x.dtype
    shape = x.shape if count == 1 else (count, *x.shape)
    noise = x.new_empty(shape) if drawn is dtype else x.new_empty(shape, dtype=drawn)
    for one in (noise,) if count == 1 or draws_in_pieces(drawn) else noise.unbind():
        one.bernoulli_(1.0 - p)
    if x.numel() <= UNPACKED:
        factors = noise.mul_(_scale(p, dtype)) if drawn is dtype else cast_one(noise, dtype)
        return factors * x, factors
    packed = torch.mv(noise.view(-1, 8), _powers(drawn)).byte()
    # The noise is zero and one, so that only the second product rounds: as the one of F.dropout does.
    dropped = cast_one(noise, dtype).mul_(x)
    return dropped.mul_(_scale(p, dtype)) if drawn is dtype else dropped, packed


def scale_left(p: float, dtype: torch.dtype, drawn: torch.dtype) -> float:
    """What is left to multiply with, of x that is read in this dtype; one where the factors have the scale."""
    return 1.0 if dtype is drawn else 1.0 / (1.0 - p)


def factors_together(
    packed: Tensor, p: float, count: int, rows: int, columns: int, dtype: torch.dtype, drawn: torch.dtype
) -> Tensor:
    """:func:`factors_of` for the masks of :func:`drop_together`, ``[masks, rows, columns]``."""
    if packed.is_floating_point():
        return packed
    return _table(p, dtype, drawn).index_select(0, packed.int()).view(count, rows, columns)


def factors_of(
    packed: Tensor, p: float, rows: int, columns: int, dtype: torch.dtype, drawn: torch.dtype
) -> Tensor | None:
    """What each element is multiplied with, but for :func:`scale_left`; None where kernels multiply with the bits.

    Args:
        packed: the mask.
        p: of dropout.
        rows: of x.
        columns: of x.
        dtype: in which x is read, and of the factors, ``[rows, columns]``.
        drawn: for which dropout is drawn.
    """
    if packed.is_floating_point():
        return packed
    if not packed.is_cpu or dispatch_modes():
        return None
    spread, size = _table(p, dtype, drawn).index_select(0, packed.int()).view(-1), rows * columns
    return (spread if spread.shape[0] == size else spread[:size]).view(rows, columns)


def _pack(noise: Tensor) -> Tensor:
    """:func:`~patchkit_kernels.ops.dropout.pack_mask` of a mask of zeros and ones in a floating dtype.

    Each byte is a product of eight elements with powers of two: integers up to 255, which every floating dtype holds.
    """
    if noise.numel() % 8:
        return pack_mask(noise != 0)
    return torch.mv(noise.reshape(-1, 8), _powers(noise.dtype)).to(torch.uint8)


@lru_cache(maxsize=8)
def _powers(dtype: torch.dtype) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=dtype, device="cpu")


@lru_cache(maxsize=32)
def _scale(p: float, dtype: torch.dtype) -> Tensor:
    """What ``F.dropout`` multiplies what it keeps with, rounded as it rounds it: a tensor without dimensions.

    A number would be made one at each product, which takes as long as the product.
    """
    return _table(p, dtype, dtype)[255, 0].clone()


@lru_cache(maxsize=32)
def _table(p: float, dtype: torch.dtype, drawn: torch.dtype) -> Tensor:
    """``[256, 8]``: the factors of the eight elements of each byte, as ``F.dropout`` rounds them, or zeros and ones."""
    ones = unpack_table(torch.device("cpu")).to(dtype)
    return ones.div_(1.0 - p) if dtype is drawn else ones
