"""Tensors of one shape as rows of adjacent elements, which is how the elementwise kernels read them."""

from __future__ import annotations

from torch import Tensor


def row_stride(tensor: Tensor) -> int | None:
    """Elements from one row to the next if ``tensor`` is evenly spaced rows of adjacent elements, else None.

    The halves of a fused ``gate_up`` output, ``[..., 2n]`` split in two, are such rows: ``2n`` apart.
    """
    if tensor.ndim == 0 or (tensor.stride(-1) != 1 and tensor.size(-1) != 1):
        return None
    found: int | None = None
    next_stride = 0
    for size, stride in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1]), strict=True):
        if size == 1:  # its stride is never used and may be anything
            continue
        if found is None:
            found = stride
        elif stride != next_stride:
            return None
        next_stride = stride * size
    return found or 0


def as_rows(*tensors: Tensor) -> tuple[list[Tensor], int, int, list[int]]:
    """View non-empty tensors of one shape as rows, copying those only that are none.

    Returns ``(tensors, rows, columns, row strides)``.
    """
    shape = tensors[0].shape
    if all(map(Tensor.is_contiguous, tensors)):
        rows = list(tensors)
    else:
        rows = [tensor if row_stride(tensor) is not None else tensor.contiguous() for tensor in tensors]
        if not all(map(Tensor.is_contiguous, rows)):
            return rows, shape.numel() // shape[-1], shape[-1], [row_stride(tensor) or 0 for tensor in rows]
    # One long row: no partly filled block at the end of each row.
    return rows, 1, shape.numel(), [0] * len(rows)
