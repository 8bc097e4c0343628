"""Dropout that is drawn once, in forward, and multiplied with once for each tensor that it is for, in backward.

:mod:`patchkit_kernels.ops.dropout` has the ops and the form of a packed mask. Here is what a fused function does with
them where nothing has to see the ops: what ``F.dropout`` yields is used as it is, and on a CPU the mask is packed and
unpacked in a few calls. Not for ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from patchkit_kernels.ops.dropout import FUSED_DROPOUT_DEVICES, draw_mask, masked, pack_mask, unpack_table
from patchkit_kernels.ops.dropout_in_pieces import draws_in_pieces
from patchkit_kernels.ops.registration import dispatch_modes

SMALL = 2**15
"""Elements of an input up to which several masks for it are drawn into one tensor: for calls, not for memory."""

UNPACKED = 2**13
"""Elements of an input up to which a mask is kept as what it was multiplied with, and not in bits: at most 32 KB of
float32, half of what ``F.dropout`` keeps of it, for four calls less. Packing and unpacking took a third of the time
that dropout adds to a block of a small model.
"""


def drop(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """``F.dropout(x, p, training=True)`` and its mask, packed; the generator is left as that call leaves it.

    Args:
        x: ``[...]``, floating point, any strides.
        p: the probability of a zero, above 0 and below 1.
    """
    if x.is_cpu and x.numel() and not dispatch_modes():
        # As in ATen/native/Dropout.cpp: into a tensor like x, since the draws may depend on its dtype and strides.
        noise = torch.empty_like(x).bernoulli_(1.0 - p)
        packed = _pack(noise)
        return noise.div_(1.0 - p).mul_(x), packed
    if x.device.type in FUSED_DROPOUT_DEVICES and x.numel():
        dropped, mask = torch.native_dropout(x, p, True)
        return dropped, pack_mask(mask)
    packed = pack_mask(draw_mask(x, p))
    return masked(x, packed, 1.0 / (1.0 - p)), packed


def drop_together(x: Tensor, probabilities: Sequence[float]) -> tuple[Tensor, Tensor] | None:
    """:func:`drop` of one input for each probability in turn, in few calls; None where it is not that small or simple.

    Args:
        x: ``[..., n]``.
        probabilities: as many as there are masks.

    Returns:
        What they yield, ``[masks, rows, n]``, of one mask ``[rows, n]``; and the packed masks, one after the other, or
        for an input of few elements (:data:`UNPACKED`) what it was multiplied with, in its dtype and that shape.
    """
    count, p, size = len(probabilities), probabilities[0], x.numel()
    if not 0 < size <= SMALL or size % 8 or not x.is_cpu or dispatch_modes() or not x.is_contiguous():
        return None
    if count > 1 and probabilities.count(p) < count:
        return None
    dtype, columns = x.dtype, x.shape[-1]
    if count == 1:
        noise = x.new_empty(size // columns, columns).bernoulli_(1.0 - p)
    else:
        noise = x.new_empty(count, size // columns, columns)
        for one in (noise,) if draws_in_pieces(dtype) else noise.unbind():
            one.bernoulli_(1.0 - p)
    if size <= UNPACKED:
        factors = noise.mul_(_scale(p, dtype))
        return factors * x.view(size // columns, columns), factors
    packed = torch.mv(noise.view(-1, 8), _powers(dtype)).byte()
    # The noise is zero and one, so that only the second product rounds: as the one of F.dropout does.
    return noise.mul_(x.view(size // columns, columns)).mul_(_scale(p, dtype)), packed


def factors_together(packed: Tensor, p: float, count: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """:func:`factors_of` for the masks of :func:`drop_together`, ``[masks, rows, columns]``."""
    if packed.is_floating_point():
        return packed
    return _table(p, dtype).index_select(0, packed.int()).view(count, rows, columns)


def factors_of(packed: Tensor, p: float, rows: int, columns: int, dtype: torch.dtype) -> Tensor | None:
    """What each element was multiplied with, ``[rows, columns]``; None where kernels multiply with the bits."""
    if packed.is_floating_point():
        return packed
    if not packed.is_cpu or dispatch_modes():
        return None
    spread, size = _table(p, dtype).index_select(0, packed.int()).view(-1), rows * columns
    return (spread if spread.shape[0] == size else spread[:size]).view(rows, columns)


def drop_again(x: Tensor, packed: Tensor, p: float, factors: Tensor | None) -> Tensor:
    """x ``[rows, n]`` multiplied with the mask of its shape and the scale, in the dtype of x.

    Args:
        x: floating point.
        packed: of :func:`drop`.
        p: as there.
        factors: of :func:`factors_of`, in x's dtype or a wider one.
    """
    if factors is None:
        return masked(x, packed, 1.0 / (1.0 - p))
    product = x * factors
    return product if product.dtype is x.dtype else product.to(x.dtype)


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
    return _table(p, dtype)[255, 0].clone()


@lru_cache(maxsize=32)
def _table(p: float, dtype: torch.dtype) -> Tensor:
    """``[256, 8]``: the factors of the eight elements of every byte, as ``F.dropout`` rounds them."""
    return unpack_table(torch.device("cpu")).to(dtype).div_(1.0 - p)
