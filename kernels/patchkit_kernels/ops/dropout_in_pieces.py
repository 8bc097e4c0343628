"""Dropout's mask of a large tensor drawn a piece at a time, where the generator gives the same numbers then.

``Tensor.bernoulli_`` on a CPU takes its numbers one after the other from the generator, so that calls for two halves
draw what one draws for the whole. With Intel's MKL on Intel's processors it does not: each call takes one number and
goes on with a stream of MKL's own. Which of them it is on a CPU is tried, once for each dtype, with a generator of its
own. Other devices divide a draw between as many threads as its size gives; they draw the whole at once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from patchkit_kernels.ops.dropout import draw_mask, pack_mask

_TRIED = (64, 48), 24
"""Rows and columns of a draw, and the rows of the first of its two pieces."""


def draw_packed(like: Tensor, rows: int, columns: int, p: float, dtype: torch.dtype, piece: int) -> Tensor:
    """The packed mask that ``F.dropout`` would apply to a contiguous ``[rows, columns]``.

    The generator is left as that call leaves it. The noise of all elements exists for the time of the draw, unless it
    is drawn in pieces.

    Args:
        like: a tensor of the device.
        rows: how many there are.
        columns: how wide they are.
        p: the probability of a zero.
        dtype: of the tensor for which dropout is drawn.
        piece: how many rows may be drawn at once, a multiple of 8 if there are more.
    """
    whole = rows <= piece or torch.compiler.is_compiling() or not like.is_cpu or not draws_in_pieces(dtype)
    sizes = [rows] if whole else [min(piece, rows - start) for start in range(0, rows, piece)]
    packed = [pack_mask(draw_mask(like.new_empty((size, columns), dtype=dtype), p)) for size in sizes]
    return packed[0] if whole else torch.cat(packed)


@lru_cache(maxsize=8)
def draws_in_pieces(dtype: torch.dtype) -> bool:
    """Whether a CPU draws the same in pieces as at once."""
    (rows, columns), first = _TRIED
    states, drawn = [], []
    for pieces in ([rows], [first, rows - first]):
        generator = torch.Generator().manual_seed(0)
        parts = [torch.empty((size, columns), dtype=dtype).bernoulli_(0.7, generator=generator) for size in pieces]
        drawn.append(torch.cat(parts))
        states.append(generator.get_state())
    return torch.equal(*drawn) and torch.equal(*states)
