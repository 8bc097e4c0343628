"""Dropout whose mask is kept as one bit per element, and is the mask that torch would have drawn.

Srivastava et al. 2014, Dropout; torch's form of it scales what is kept, ``y = x * mask / (1 - p)``, with each bit of
the mask one with probability ``1 - p``. Torch keeps x's dtype or a byte per element for backward; this keeps a bit.

Bit ``i % 8`` of byte ``i // 8`` is element i of the mask in row-major order, the lowest bit first. The last byte's bits
behind the mask's end are zero.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.operators import register_op

FUSED_DROPOUT_DEVICES = ("cuda", "xpu")
"""Where ``F.dropout`` is ``torch.native_dropout``, whose draws depend on the tensor's dtype, strides and alignment."""

CHUNK = 2**20
"""Elements whose factors ``masked_`` holds at once, a multiple of 8: 4 MiB in fp32."""

# Eight bytes b_i of zero or one, read as an integer of 64 bits, times such a number give an integer whose highest byte
# has b_i as bit i: (the number, where the highest byte lies in memory).
GATHER_BITS = {"little": (0x0102040810204080, 7), "big": (0x8040201008040201 - 2**64, 0)}


def draw_mask(x: Tensor, p: float) -> Tensor:
    """The mask that ``torch.nn.functional.dropout(x, p, training=True)`` would apply, drawn as it draws it.

    The random generator of x's device is in the same state afterwards as after that call, so that code which draws
    next sees the same numbers. The same holds within ``torch.compile``, compared with that call compiled.

    Args:
        x: ``[...]``, floating point, any strides. Its values are not used.
        p: the probability of a zero, within [0, 1].

    Returns:
        bool, of x's shape and memory layout (``torch.empty_like``); True where an element is kept.

    Raises:
        ValueError: p is not a probability.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"the probability of dropout must be within [0, 1], but is {p}")
    if p == 0.0 or x.numel() == 0:
        return torch.ones_like(x, dtype=torch.bool)
    if torch.compiler.is_compiling():
        return torch.native_dropout(x, p, True)[1]  # what F.dropout is there for every device and p
    if p == 1.0:
        return torch.zeros_like(x, dtype=torch.bool)
    if x.device.type in FUSED_DROPOUT_DEVICES:
        return torch.native_dropout(x, p, True)[1]
    if x.device.type == "cpu":
        # ATen/native/Dropout.cpp draws into a tensor like x; there the draws do not depend on the dtype.
        return torch.empty_like(x, dtype=torch.bool).bernoulli_(1.0 - p)
    return F.dropout(torch.ones_like(x), p, True) != 0


def pack_mask(mask: Tensor) -> Tensor:
    """Eight elements to a byte, see the module's docstring: the op ``patchkit::pack_mask``.

    Args:
        mask: bool, any shape and strides.

    Returns:
        uint8, ``[ceil(numel / 8)]``.

    Raises:
        ValueError: ``mask`` is not bool.
    """
    result: Tensor = _pack_mask(mask)
    return result


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack_mask`: bool, contiguous, of the given shape.

    Raises:
        ValueError: ``packed`` is not what :func:`pack_mask` makes of a mask of that shape.
    """
    size = torch.Size(shape)
    _check_packed("unpack_mask", packed, size)
    return _spread(packed, _bits(packed.device)).flatten()[: size.numel()].view(size)


def masked(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """``x * mask * scale``: the op ``patchkit::masked``.

    On a CPU the bits are those of ``F.dropout`` there, which rounds the scale to x's dtype first; the kernel computes
    in fp32 and rounds once, as ``F.dropout`` does on its devices.

    Args:
        x: ``[rows, n]``, or any other shape; floating point, any strides.
        packed: :func:`pack_mask` of a mask of x's shape.
        scale: ``1 / (1 - p)``, or 0 if p is 1.

    Returns:
        Contiguous, like x in shape and dtype.

    Raises:
        ValueError: ``packed`` does not fit x.
    """
    result: Tensor = _masked(x, packed, scale)
    return result


def masked_(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """:func:`masked`, written over x, which is contiguous and returned: the op ``patchkit::masked_``.

    Raises:
        ValueError: ``packed`` does not fit x, or x is not contiguous.
    """
    _masked_(x, packed, scale)
    return x


def masked_reference(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """:func:`masked` in ordinary operations, any number of times differentiable with respect to x."""
    return (x * _factors(x, packed, scale).view(x.shape)).contiguous()


def _bits(device: torch.device) -> Tensor:
    """``[256, 8]``, bool: the bits of every byte, the lowest first."""
    byte = torch.arange(256, dtype=torch.int32, device=device).unsqueeze(1)
    return (byte >> torch.arange(8, dtype=torch.int32, device=device)) & 1 != 0


def _spread(packed: Tensor, table: Tensor) -> Tensor:
    """The row of a ``[256, 8]`` table for each byte, ``[bytes, 8]``."""
    return table.index_select(0, packed.int())


def _factors(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """What each element of x is multiplied by, zero or the scale, flat, in x's dtype."""
    return _spread(packed, _bits(x.device).to(x.dtype).mul_(scale)).flatten()[: x.numel()]


def _check_packed(name: str, packed: Tensor, shape: torch.Size) -> None:
    wanted = -(-shape.numel() // 8)
    if packed.dtype != torch.uint8 or packed.shape != (wanted,):
        raise ValueError(
            f"patchkit::{name} takes a uint8 mask of [{wanted}] for elements of {list(shape)}, "
            f"but got {packed.dtype} of {list(packed.shape)}"
        )


def _check_mask(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"patchkit::pack_mask takes a mask of torch.bool, but got {mask.dtype}")


def _check_masked(name: str, x: Tensor, packed: Tensor) -> None:
    _check_packed(name, packed, x.shape)
    if packed.device != x.device:
        raise ValueError(f"patchkit::{name} takes tensors of one device, but got {x.device} and {packed.device}")
    if name == "masked_" and not x.is_contiguous():
        raise ValueError(f"patchkit::masked_ writes over x, which must be contiguous, but has strides {x.stride()}")


def _pack_reference(mask: Tensor) -> Tensor:
    _check_mask(mask)
    flat = mask.flatten()
    whole = -(-flat.numel() // 8) * 8
    if flat.numel() != whole or flat.storage_offset() % 8:  # whole and aligned, or it cannot be read as integers
        flat = torch.cat([flat, flat.new_zeros(whole - flat.numel())])
    factor, highest = GATHER_BITS[sys.byteorder]
    gathered = flat.view(torch.int64) * factor
    return gathered.view(torch.uint8)[highest::8].clone()


def _pack_fake(mask: Tensor) -> Tensor:
    _check_mask(mask)
    return mask.new_empty(-(-mask.numel() // 8), dtype=torch.uint8)


def _masked_reference(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    _check_masked("masked", x, packed)
    return _factors(x, packed, scale).view(x.shape).mul_(x)


def _masked_fake(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    _check_masked("masked", x, packed)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _masked_inplace_reference(x: Tensor, packed: Tensor, scale: float) -> None:
    _check_masked("masked_", x, packed)
    flat = x.view(-1)
    for start in range(0, x.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        part.mul_(_factors(part, packed[start // 8 : (start + CHUNK) // 8], scale))


def _masked_inplace_fake(x: Tensor, packed: Tensor, scale: float) -> None:
    _check_masked("masked_", x, packed)


_pack_mask = register_op("pack_mask(Tensor mask) -> Tensor", _pack_reference, _pack_fake)
_masked = register_op("masked(Tensor x, Tensor packed, float scale) -> Tensor", _masked_reference, _masked_fake)
_masked_ = register_op(
    "masked_(Tensor(a!) x, Tensor packed, float scale) -> ()", _masked_inplace_reference, _masked_inplace_fake
)
