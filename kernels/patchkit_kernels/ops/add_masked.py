"""Dropout's backward into a sum: ``total += x * mask * scale`` in one pass, with a mask of one bit an element.

A masked product that is written and read again to be added takes four passes more over memory of its size.
The form of the mask is that of :mod:`.dropout`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.dropout import BLOCK, CHUNK, check_masked, factors
from patchkit_kernels.ops.registration import register_op, runs_kernel
from patchkit_kernels.ops.triton_support import TRITON_DTYPES, device_guard, jit, tl


@jit
def add_masked_kernel(
    total_ptr: tl.tensor,
    x_ptr: tl.tensor,
    packed_ptr: tl.tensor,
    scale: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The elements of one block of bytes: ``total + x * mask * scale``, computed in fp32 and rounded by the store.

    Each program reads and writes the same elements of total, each once, so the order of programs does not matter.
    """
    # 64-bit, because there can be more than 2**31 elements.
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)[None, :]
    element = byte[:, None] * 8 + bit
    inside = element < size
    # Each byte is read once, not once for each of its elements.
    packed = tl.load(packed_ptr + byte, mask=byte * 8 < size, other=0).to(tl.int32)
    kept = ((packed[:, None] >> bit) & 1).to(tl.float32)
    x = tl.load(x_ptr + element, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(total_ptr + element, mask=inside, other=0.0).to(tl.float32)
    # A product and no selection: an infinity that is dropped becomes NaN, as in torch.
    tl.store(total_ptr + element, total + x * kept * scale, mask=inside)


def launch(total: Tensor, x: Tensor, packed: Tensor, scale: float) -> None:
    """Run the kernel on contiguous tensors of TRITON_DTYPES; total is written over."""
    size = total.numel()
    if not size:
        return
    with device_guard(total):
        add_masked_kernel[(-(-packed.numel() // BLOCK),)](total, x, packed.contiguous(), scale, size, BLOCK=BLOCK)


def add_masked_(total: Tensor, x: Tensor, packed: Tensor, scale: float) -> Tensor:
    """``total + x * mask * scale``, written over total and returned: the op ``patchkit::add_masked_``.

    The kernel computes in fp32 and rounds once; the reference rounds the product to x's dtype first. It has no
    derivative: total is a buffer of a backward that autograd does not look into.

    Args:
        total: ``[...]``, contiguous, of any floating dtype.
        x: of that shape, contiguous, of any floating dtype.
        packed: :func:`~patchkit_kernels.ops.dropout.pack_mask` of a mask of that shape.
        scale: ``1 / (1 - p)``, or 0 if p is 1.

    Raises:
        ValueError: they do not fit one another, or are not contiguous.
    """
    way = None if torch.compiler.is_compiling() else runs_kernel(total)
    run = _op if way is None else _kernel if way else _reference
    run(total, x, packed, scale)
    return total


def _check(total: Tensor, x: Tensor, packed: Tensor) -> None:
    check_masked("add_masked_", x, packed)
    if total.shape != x.shape or total.device != x.device:
        found = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in (total, x))
        raise ValueError(f"patchkit::add_masked_ takes tensors of one shape and device, but got {found}")
    if not (total.is_contiguous() and x.is_contiguous()):
        raise ValueError(
            f"patchkit::add_masked_ takes contiguous tensors, but got strides {total.stride()} and {x.stride()}"
        )


def _reference(total: Tensor, x: Tensor, packed: Tensor, scale: float) -> None:
    _check(total, x, packed)
    flat_total, flat_x = total.view(-1), x.view(-1)
    for start in range(0, total.numel(), CHUNK):
        part = flat_x[start : start + CHUNK]
        product = factors(part, packed[start // 8 : (start + CHUNK) // 8], scale).mul_(part)
        flat_total[start : start + CHUNK].add_(product)


def _kernel(total: Tensor, x: Tensor, packed: Tensor, scale: float) -> None:
    if total.dtype not in TRITON_DTYPES or x.dtype not in TRITON_DTYPES:
        return _reference(total, x, packed, scale)
    _check(total, x, packed)
    return launch(total, x, packed, scale)


def _fake(total: Tensor, x: Tensor, packed: Tensor, scale: float) -> None:
    _check(total, x, packed)


_op = register_op(
    "add_masked_(Tensor(a!) total, Tensor x, Tensor packed, float scale) -> ()", _reference, _fake, _kernel
)
