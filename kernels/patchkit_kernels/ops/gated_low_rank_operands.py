"""What the kernels of a gated MLP demand of gate, up and the tensors of its three adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patchkit_kernels.ops.activations import GATED
from patchkit_kernels.ops.triton_support import TRITON_DTYPES, jit, tl

MAX_RANK = 32
"""Beyond that, what a program holds does not fit into registers."""


@jit
def load_tile(
    pointer: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
) -> tl.tensor:
    """These rows and columns, 64-bit vectors, of a matrix ``[rows, columns]``; 0 where it has none."""
    return tl.load(
        pointer + ((row * row_stride)[:, None] + (column * column_stride)[None, :]),
        mask=(row < rows)[:, None] & (column < columns)[None, :],
        other=0.0,
    )


def block_of_rank(rank: int) -> int:
    """The power of two, 16 at least, in which a kernel holds vectors of this rank: the least of a product."""
    return max(16, 1 << (rank - 1).bit_length()) if rank else 16


def fits_kernel(wide: Tensor, factors: Sequence[Tensor], float32_rank: int = MAX_RANK) -> bool:
    """Whether a kernel takes tensors ``[tokens, n]`` like ``wide``, and B of gate and up and A of down.

    ``float32_rank``: the greatest rank for such tensors in float32.
    """
    ranks = (*(factor.shape[-1] for factor in factors[:2]), *(factor.shape[0] for factor in factors[2:]))
    greatest = float32_rank if wide.dtype == torch.float32 else MAX_RANK
    return {wide.dtype, *(factor.dtype for factor in factors)} <= TRITON_DTYPES and max(ranks) <= greatest


def wide_dtype(*tensors: Tensor) -> torch.dtype:
    """In which the references compute."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_low_rank(
    op: str,
    wide: Mapping[str, Tensor],
    written_over: Sequence[str],
    reduced: Sequence[Tensor],
    factors: Sequence[Tensor],
    scales: Sequence[float],
    activation: str,
) -> None:
    """Raise ValueError unless all of these fit each other.

    Args:
        op: its name.
        wide: the tensors ``[tokens, n]`` by their names.
        written_over: the names of those which are.
        reduced: t of gate and up, and dt of down, if it takes part.
        factors: B of gate and of up, and A of down.
        scales: s of gate and up.
        activation: its name.
    """
    if activation not in GATED:
        raise ValueError(f"patchkit::{op}: no activation {activation!r}; there are {', '.join(GATED)}")
    if len(factors) != 3 or len(scales) != 2 or len(reduced) not in (2, 3):
        raise ValueError(
            f"patchkit::{op} takes B of gate and up and A of down, t of each that is read, and two scales, but got "
            f"{len(factors)}, {len(reduced)} and {len(scales)} of them"
        )
    first = next(iter(wide.values()))
    tensors = [*wide.values(), *reduced, *factors]
    fits = all(tensor.ndim == 2 and tensor.device == first.device for tensor in tensors)
    if fits:
        tokens, n = first.shape
        ranks = [factors[0].shape[1], factors[1].shape[1], factors[2].shape[0]]
        expected = [(n, ranks[0]), (n, ranks[1]), (ranks[2], n)]
        fits = (
            all(tensor.shape == first.shape and tensor.dtype == first.dtype for tensor in wide.values())
            and [tuple(factor.shape) for factor in factors] == expected
            and all(tuple(t.shape) == (tokens, rank) for t, rank in zip(reduced, ranks, strict=False))
            and len({tensor.dtype for tensor in (*reduced, *factors)}) == 1
        )
    if not fits:
        names = [*wide, *(f"reduced {i}" for i in range(len(reduced))), *(f"factor {i}" for i in range(3))]
        found = ", ".join(
            f"{name}: {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            for name, tensor in zip(names, tensors, strict=True)
        )
        raise ValueError(
            f"patchkit::{op} takes {', '.join(wide)} [tokens, n] of one dtype, t [tokens, r] of each adapter, B [n, r] "
            f"of gate and up and A [r, n] of down, t, B and A of one dtype and all on one device, but got {found}"
        )
    for name in written_over:
        if not wide[name].is_contiguous():
            raise ValueError(
                f"patchkit::{op} writes over {name}, which must be contiguous, but has strides {wide[name].stride()}"
            )
