"""The norm that DoRA divides by: of every row of ``W + s (B A + c 1^T)``, without making that sum.

Liu et al. 2024, DoRA (https://arxiv.org/abs/2402.09353), equation 5: the adapted weight is split into a magnitude and
a direction, and the direction is the sum divided by its norm. Section 4.3 treats the norm as a constant, so nothing
here has a derivative. PEFT (``peft/tuners/lora/dora.py``, ``get_lora_weight``) gets B A by pushing the identity
through both adapters, which adds a bias c of B to every column; W and B A are ``[out, in]`` there, each as large as
the layer's weight.

The squares of the sum are added up as they are. Expanding them, ``|W|^2 + 2 s W.BA + s^2 |BA|^2``, would save the
product, but cancels where the adapter turns against the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.registration import LIBRARY, register_op
from patchkit_kernels.ops.triton_support import TRITON_DTYPES, device_guard, jit, tl

CHUNK = 2**18
"""Elements of the sum that the reference holds at once: 1 MiB in fp32, which stays in a core's second-level cache.

It is never all of ``[out, in]``, unless that is smaller. On one core with 2 MiB of such cache, 2**18 was the fastest
power of four from 2**14 on, and 2 to 4 times as fast as no chunks at all.
"""

BLOCK_ROWS, BLOCK_COLUMNS = 32, 64
"""The tile of the sum that a program of 4 warps holds: 16 elements of it per thread, and as many squares.

With twice the columns ptxas takes half as much again registers: 168 for fp32 factors on sm_90, not 127.
"""

BLOCK_RANK = 16
"""How much of the rank one ``tl.dot`` takes, the least it can; what it takes beyond the rank is wasted."""

SPAN = 1024
"""Columns per program, so that a layer of few rows still fills the device: 1024 x 4096, as k and v have, is 128."""


@jit
def dora_weight_norm_kernel(
    weight_ptr: tl.tensor,
    lora_a_ptr: tl.tensor,
    lora_b_ptr: tl.tensor,
    lora_bias_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    scaling: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    rank: tl.tensor,
    weight_row_stride: tl.tensor,
    weight_column_stride: tl.tensor,
    lora_a_rank_stride: tl.tensor,
    lora_a_column_stride: tl.tensor,
    lora_b_row_stride: tl.tensor,
    lora_b_rank_stride: tl.tensor,
    lora_bias_stride: tl.tensor,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    SPAN: tl.constexpr,
) -> None:
    """The sums of the squares over one span of columns, for one block of rows, into ``squares[span, row]``.

    A and B are multiplied in their dtype, or in fp32 if they have two; everything is summed in fp32. A missing bias is
    None.
    """
    # 64-bit before the products with strides, which can pass 2**31 elements although each factor fits 32 bits.
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first = tl.program_id(1).to(tl.int64) * SPAN
    is_row = row < rows
    weight_row_ptr = weight_ptr + (row * weight_row_stride)[:, None]
    lora_b_row_ptr = lora_b_ptr + (row * lora_b_row_stride)[:, None]
    squares = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, tl.minimum(columns - first, SPAN), BLOCK_COLUMNS):
        column = first + start + tl.arange(0, BLOCK_COLUMNS)
        is_column = column < columns
        lora_a_column_ptr = lora_a_ptr + (column * lora_a_column_stride)[None, :]
        product = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        for rank_start in range(0, rank, BLOCK_RANK):
            index = rank_start + tl.arange(0, BLOCK_RANK).to(tl.int64)
            is_index = index < rank
            b_mask = is_row[:, None] & is_index[None, :]
            b = tl.load(lora_b_row_ptr + (index * lora_b_rank_stride)[None, :], mask=b_mask, other=0.0)
            a_mask = is_index[:, None] & is_column[None, :]
            a = tl.load(lora_a_column_ptr + (index * lora_a_rank_stride)[:, None], mask=a_mask, other=0.0)
            if a.dtype != b.dtype:  # known when compiling; fp32 holds both exactly
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            # Not in TF32, which would round fp32 adapters to 10 bits.
            product = tl.dot(b, a, product, input_precision="ieee")
        mask = is_row[:, None] & is_column[None, :]
        weight = tl.load(weight_row_ptr + (column * weight_column_stride)[None, :], mask=mask, other=0.0)
        if lora_bias_ptr is not None:
            bias = tl.load(lora_bias_ptr + row * lora_bias_stride, mask=is_row, other=0.0)
            product += tl.where(mask, bias.to(tl.float32)[:, None], 0.0)  # nothing beside the last column
        total = weight.to(tl.float32) + scaling * product
        squares += total * total
    tl.store(squares_ptr + (tl.program_id(1).to(tl.int64) * rows + row), tl.sum(squares, 1), mask=is_row)


def launch(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None) -> Tensor:
    """Run the kernel, on tensors that fit each other and are of TRITON_DTYPES; returns ``[out]`` in fp32."""
    rows, columns = weight.shape
    spans = -(-columns // SPAN)
    # Summed up by torch afterwards: unlike atomic additions, that gives the same bits every time.
    squares = torch.empty(spans, rows, dtype=torch.float32, device=weight.device)
    if squares.numel():
        with device_guard(weight):
            dora_weight_norm_kernel[(-(-rows // BLOCK_ROWS), spans)](
                weight,
                lora_a,
                lora_b,
                lora_bias,
                squares,
                scaling,
                rows,
                columns,
                lora_a.shape[0],
                *weight.stride(),
                *lora_a.stride(),
                *lora_b.stride(),
                1 if lora_bias is None else lora_bias.stride(0),
                BLOCK_ROWS=BLOCK_ROWS,
                BLOCK_COLUMNS=BLOCK_COLUMNS,
                BLOCK_RANK=BLOCK_RANK,
                SPAN=SPAN,
            )
    return squares.sum(0).sqrt_()


def dora_weight_norm_reference(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None
) -> Tensor:
    """:func:`dora_weight_norm` in torch, on as many rows at a time as fit :data:`CHUNK`.

    Of a transposed view, as an embedding's table is, it takes columns: they lie together, and its rows do not.
    """
    dtype = _result_dtype(weight, lora_a, lora_b, lora_bias)
    if weight.stride(0) < weight.stride(1):
        return _norm_by_columns(weight, lora_a.to(dtype), lora_b.to(dtype), scaling, lora_bias)
    columns = weight.shape[1]
    norm = torch.empty(weight.shape[0], dtype=dtype, device=weight.device)
    rows = max(1, CHUNK // max(1, columns))
    lora_a = lora_a.to(dtype)
    for start in range(0, weight.shape[0], rows):
        chunk = slice(start, start + rows)
        total = torch.addmm(weight[chunk].to(dtype), lora_b[chunk].to(dtype), lora_a, alpha=scaling)
        if lora_bias is not None:
            total.add_(lora_bias[chunk, None], alpha=scaling)
        torch.linalg.vector_norm(total, dim=1, out=norm[chunk])
    return norm


def _norm_by_columns(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None
) -> Tensor:
    """The same by adding up the squares of ranges of columns; measured 14 to 18 times as fast on a transposed view."""
    squares = torch.zeros(weight.shape[0], dtype=lora_a.dtype, device=weight.device)
    columns = max(1, CHUNK // max(1, weight.shape[0]))
    for start in range(0, weight.shape[1], columns):
        chunk = slice(start, start + columns)
        total = torch.addmm(weight[:, chunk].t().to(lora_a.dtype), lora_a[:, chunk].t(), lora_b.t(), alpha=scaling)
        if lora_bias is not None:
            total.add_(lora_bias, alpha=scaling)
        squares.add_(total.square_().sum(0))
    return squares.sqrt_()


def _result_dtype(*tensors: Tensor | None) -> torch.dtype:
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def _check(weight: Tensor, lora_a: Tensor, lora_b: Tensor, lora_bias: Tensor | None) -> None:
    """Raise ValueError unless the shapes and devices fit each other."""
    tensors = {"weight": weight, "lora_a": lora_a, "lora_b": lora_b}
    if lora_bias is not None:
        tensors["lora_bias"] = lora_bias
    fits = (
        weight.ndim == lora_a.ndim == lora_b.ndim == 2
        and lora_a.shape == (lora_b.shape[1], weight.shape[1])
        and lora_b.shape[0] == weight.shape[0]
        and (lora_bias is None or lora_bias.shape == weight.shape[:1])
        and len({tensor.device for tensor in tensors.values()}) == 1
    )
    if not fits:
        found = ", ".join(f"{name}: {list(tensor.shape)} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(
            "patchkit::dora_weight_norm takes weight [out, in], lora_a [r, in], lora_b [out, r] and lora_bias [out] "
            f"on one device, but got {found}"
        )


@torch.no_grad()
def _reference(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None
) -> Tensor:
    _check(weight, lora_a, lora_b, lora_bias)
    with torch.autocast(weight.device.type, enabled=False):  # it would make the product in bf16
        return dora_weight_norm_reference(weight, lora_a, lora_b, scaling, lora_bias)


def _kernel(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None) -> Tensor:
    if any(tensor is not None and tensor.dtype not in TRITON_DTYPES for tensor in (weight, lora_a, lora_b, lora_bias)):
        return _reference(weight, lora_a, lora_b, scaling, lora_bias)
    _check(weight, lora_a, lora_b, lora_bias)
    return launch(weight, lora_a, lora_b, scaling, lora_bias)


def _fake(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None) -> Tensor:
    _check(weight, lora_a, lora_b, lora_bias)
    return weight.new_empty(weight.shape[0], dtype=_result_dtype(weight, lora_a, lora_b, lora_bias))


_op = register_op(
    "dora_weight_norm(Tensor weight, Tensor lora_a, Tensor lora_b, float scaling, Tensor? lora_bias=None) -> Tensor",
    _reference,
    _fake,
    _kernel,
)
# A constant: autograd passes over it, and the result does not require a gradient whatever the arguments do.
LIBRARY.impl("dora_weight_norm", torch.library.fallthrough_kernel, "Autograd")


def dora_weight_norm(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None
) -> Tensor:
    """The L2 norm of each row of ``W + s (B A + c 1^T)``, a constant: the op ``patchkit::dora_weight_norm``.

    Every row is on its own, so a quantised weight can be given in pieces: any range of rows, dequantised, with the
    same rows of ``lora_b`` and ``lora_bias``.

    Args:
        weight: W, ``[out, in]``, any strides; any mixture of floating dtypes here and below.
        lora_a: A, ``[r, in]``.
        lora_b: B, ``[out, r]``.
        scaling: s.
        lora_bias: c, ``[out]``: the bias of B (PEFT's ``lora_bias=True``), or None.

    Returns:
        ``[out]``, float64 if any argument is, else float32. It never requires a gradient.

    Raises:
        ValueError: the shapes do not fit, or the devices differ.
    """
    result: Tensor = _op(weight, lora_a, lora_b, scaling, lora_bias)
    return result
