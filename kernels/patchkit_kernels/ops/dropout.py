"""Dropout whose mask is kept as one bit per element, and is the mask that torch would have drawn.

Srivastava et al. 2014, Dropout; torch's form of it scales what is kept, ``y = x * mask / (1 - p)``, with each bit of
the mask one with probability ``1 - p``. Torch keeps x's dtype or a byte per element for backward; this keeps a bit.

Bit ``i % 8`` of byte ``i // 8`` is element i of the mask in row-major order, the lowest bit first. The last byte's bits
behind the mask's end are zero.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.ops.registration import LIBRARY, register_op
from patchkit_kernels.ops.triton_support import TRITON_DTYPES, device_guard, jit, tl

FUSED_DROPOUT_DEVICES = ("cuda", "xpu")
"""Where ``F.dropout`` is ``torch.native_dropout``, whose draws depend on the tensor's dtype, strides and alignment."""

CHUNK = 2**20
"""Elements whose factors ``masked_`` holds at once, a multiple of 8: 4 MiB in fp32."""

# Eight bytes b_i of zero or one, read as an integer of 64 bits, times such a number give an integer whose highest byte
# has b_i as bit i: (the number, where the highest byte lies in memory).
GATHER_BITS = {"little": (0x0102040810204080, 7), "big": (0x8040201008040201 - 2**64, 0)}


BLOCK = 128
"""Bytes of mask per program: 1024 elements, 8 per thread with Triton's 4 warps of 32, a 16-byte access in bf16."""


@jit
def pack_mask_kernel(mask_ptr: tl.tensor, packed_ptr: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> None:
    """One block of bytes, from ``size`` adjacent bytes of zero or one."""
    # 64-bit, because there can be more than 2**31 elements.
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)[None, :]
    element = byte[:, None] * 8 + bit
    kept = tl.load(mask_ptr + element, mask=element < size, other=0)
    tl.store(packed_ptr + byte, tl.sum(kept << bit.to(tl.uint8), 1).to(tl.uint8), mask=byte * 8 < size)


@jit
def masked_kernel(
    x_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    result_ptr: tl.tensor,
    scale: tl.tensor,
    size: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The elements of one block of bytes: ``result = x * mask * scale``, computed in fp32 and rounded by the store.

    ``result`` is contiguous and may be x itself, since each program reads and writes the same elements.
    """
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)[None, :]
    element = byte[:, None] * 8 + bit
    inside = element < size
    # Each byte is read once, not once for each of its elements.
    packed = tl.load(packed_ptr + byte, mask=byte * 8 < size, other=0).to(tl.int32)
    kept = ((packed[:, None] >> bit) & 1).to(tl.float32)
    offset = element
    if not CONTIGUOUS:
        offset = element // columns * row_stride + element % columns * column_stride
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    # A product and no selection: what is dropped keeps its sign, and an infinity becomes NaN, as in torch.
    tl.store(result_ptr + element, x * kept * scale, mask=inside)


def launch_pack_mask(mask: Tensor) -> Tensor:
    """Run the first kernel on a bool tensor."""
    size = mask.numel()
    packed = torch.empty(-(-size // 8), dtype=torch.uint8, device=mask.device)
    if size:
        with device_guard(mask):
            grid = (-(-packed.numel() // BLOCK),)
            pack_mask_kernel[grid](mask.contiguous().view(torch.uint8), packed, size, BLOCK=BLOCK)
    return packed


def launch_masked(x: Tensor, packed: Tensor, scale: float, result: Tensor) -> None:
    """Run the second kernel on x of one of TRITON_DTYPES, into a contiguous result, which may be x."""
    if not x.numel():
        return
    if not x.is_contiguous():
        x = x.reshape(-1, x.shape[-1])
    contiguous = x.is_contiguous()
    columns, strides = (1, (0, 0)) if contiguous else (x.shape[1], x.stride())
    with device_guard(x):
        masked_kernel[(-(-packed.numel() // BLOCK),)](
            x,
            packed.contiguous(),
            result,
            scale,
            x.numel(),
            columns,
            *strides,
            CONTIGUOUS=contiguous,
            BLOCK=BLOCK,
        )


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
        # As in ATen/native/Dropout.cpp: into a tensor like x, since the draws may depend on its dtype and strides.
        return torch.empty_like(x).bernoulli_(1.0 - p) != 0
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
    return _spread(packed, unpack_table(packed.device)).flatten()[: size.numel()].view(size)


def masked(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """``x * mask * scale``, any number of times differentiable: the op ``patchkit::masked``.

    On a CPU the bits are those of ``F.dropout``, which rounds the factor to x's dtype before it multiplies. The kernel
    multiplies in fp32 and rounds once, as ``F.dropout`` does on its devices, by a scale that may differ from
    ``F.dropout``'s in the last bit of fp32 (ATen/native/cuda/Dropout.cu inverts ``1 - p`` after rounding it).

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

    It has no derivative: x is a buffer of a forward or backward that autograd does not look into.

    Raises:
        ValueError: ``packed`` does not fit x, or x is not contiguous.
    """
    _masked_(x, packed, scale)
    return x


def masked_reference(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """:func:`masked` in ordinary operations, any number of times differentiable with respect to x."""
    return (x * factors(x, packed, scale).view(x.shape)).contiguous()


def unpack_table(device: torch.device) -> Tensor:
    """``[256, 8]``, bool: the bits of every byte, the lowest first."""
    byte = torch.arange(256, dtype=torch.int32, device=device).unsqueeze(1)
    return (byte >> torch.arange(8, dtype=torch.int32, device=device)) & 1 != 0


def _spread(packed: Tensor, table: Tensor) -> Tensor:
    """The row of a ``[256, 8]`` table for each byte, ``[bytes, 8]``."""
    return table.index_select(0, packed.int())


def factors(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """What each element of x is multiplied by, zero or the scale, flat, in x's dtype."""
    table = unpack_table(x.device).to(x.dtype)
    # F.dropout divides its mask by 1 - p in x's dtype; multiplying by the scale would round otherwise now and then.
    table = table.div_(1.0 / scale) if scale else table.zero_()
    return _spread(packed, table).flatten()[: x.numel()]


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


def check_masked(name: str, x: Tensor, packed: Tensor) -> None:
    """Raise ValueError unless the packed mask fits x."""
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
    return gathered.view(torch.uint8)[highest::8].clone(memory_format=torch.contiguous_format)


def _pack_kernel(mask: Tensor) -> Tensor:
    _check_mask(mask)
    return launch_pack_mask(mask)


def _pack_fake(mask: Tensor) -> Tensor:
    _check_mask(mask)
    return mask.new_empty(-(-mask.numel() // 8), dtype=torch.uint8)


def _masked_reference(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    check_masked("masked", x, packed)
    return factors(x, packed, scale).view(x.shape).mul_(x)


def _masked_kernel(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    if x.dtype not in TRITON_DTYPES:
        return _masked_reference(x, packed, scale)
    check_masked("masked", x, packed)
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    launch_masked(x, packed, scale, result)
    return result


def _masked_fake(x: Tensor, packed: Tensor, scale: float) -> Tensor:
    check_masked("masked", x, packed)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _masked_inplace_reference(x: Tensor, packed: Tensor, scale: float) -> None:
    check_masked("masked_", x, packed)
    flat = x.view(-1)
    for start in range(0, x.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        part.mul_(factors(part, packed[start // 8 : (start + CHUNK) // 8], scale))


def _masked_inplace_kernel(x: Tensor, packed: Tensor, scale: float) -> None:
    if x.dtype not in TRITON_DTYPES:
        return _masked_inplace_reference(x, packed, scale)
    check_masked("masked_", x, packed)
    return launch_masked(x, packed, scale, x)


def _masked_inplace_fake(x: Tensor, packed: Tensor, scale: float) -> None:
    check_masked("masked_", x, packed)


_pack_mask = register_op("pack_mask(Tensor mask) -> Tensor", _pack_reference, _pack_fake, _pack_kernel)
_masked = register_op(
    "masked(Tensor x, Tensor packed, float scale) -> Tensor", _masked_reference, _masked_fake, _masked_kernel
)


def _save_mask(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    _, packed, ctx.scale = inputs
    ctx.save_for_backward(packed)


def _masked_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (packed,) = ctx.saved_tensors
    return masked(grad, packed, ctx.scale), None, None


torch.library.register_autograd("patchkit::masked", _masked_backward, setup_context=_save_mask, lib=LIBRARY)

_masked_ = register_op(
    "masked_(Tensor(a!) x, Tensor packed, float scale) -> ()",
    _masked_inplace_reference,
    _masked_inplace_fake,
    _masked_inplace_kernel,
)
