"""The backward of several projections of one input, each with its own dropout, without the lists of :mod:`.straight`.

With the products of :func:`~patchkit_kernels.lora.straight_backward.input_gradient` and of
:func:`~patchkit_kernels.lora.straight_backward.factor_gradients`, and so with their bits. Here each projection is gone
through once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import Precision, present
from patchkit_kernels.lora.shapes import as_rows, shaped_as
from patchkit_kernels.lora.straight_backward import add_dropped_, dropped_rows, times_factors, to_drop
from patchkit_kernels.lora.straight_one import TrainedOne, a_of, b_of
from patchkit_kernels.lora.wide_sums import is_wider
from patchkit_kernels.ops.casts import cast_one
from patchkit_kernels.ops.dropout_once import factors_of, factors_together, scale_left


def dropped_gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    kept: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor] | None],
    given: Sequence[TrainedOne],
    precision: Precision,
    x_needed: bool,
) -> list[Tensor | None]:
    """That of x ``[..., in]``, None if it is not needed, every dA, and every dB.

    Args:
        grads: dy of each projection, ``[..., out]``.
        x: the input.
        kept: t of each, the mask of each, or one of all, and what they have read if that was kept.
        given: the projections, two at least.
        precision: of the products.
        x_needed: whether dx is.
    """
    base, lora, _, drawn = precision
    (ts, masks, dropped), rows, dtype = kept, [as_rows(grad) for grad in grads], x.dtype
    flat, total = as_rows(x), _through_w(rows, given, base, dtype) if x_needed else None
    tokens, columns = flat.shape
    each: Sequence[Any] = masks
    read: Sequence[Any] = masks
    wide: Tensor | None = None
    wider = is_wider(lora, dtype)
    if len(masks) < len(given):
        together = factors_together(masks[0], given[0].dropout, len(given), tokens, columns, lora, drawn)
        each = together.unbind()
        read = (together * cast_one(flat, lora)).unbind() if dropped is None else dropped
    stored, d_as, d_bs = given[0].lora_b.dtype, [], []
    for grad, one, t, factors, rows_read in zip(rows, given, ts, each, read, strict=True):
        row, up, dropout, scaling = cast_one(grad, lora), b_of(one, lora), one.dropout, one.scaling
        mask = factors
        if each is masks:
            factors = factors_of(mask, dropout, tokens, columns, lora, drawn)
            flat = to_drop(flat, mask, factors, precision)  # once: the next time it is of that dtype
            rows_read = dropped_rows(flat, mask, factors, dropout, lora)
        alpha = scaling if factors is None else scaling * scale_left(dropout, lora, drawn)
        d_t = torch.addmm(t, row, up, beta=0, alpha=alpha)  # beta=0: t is not read
        if total is not None:
            product = torch.mm(d_t, a_of(one, lora))
            if factors is None or not wider:
                add_dropped_(total, product, mask, factors, dropout)
            else:
                wide = times_factors(product, factors, wide)
        d_as.append(torch.mm(d_t.t(), rows_read))
        d_bs.append(torch.addmm(up, row.t(), t, beta=0, alpha=scaling))  # beta=0: B is not read
    if total is not None and wide is not None:
        total.add_(wide)
    found = [*d_as, *d_bs] if stored is lora else [cast_one(one, stored) for one in (*d_as, *d_bs)]
    return [None if total is None else shaped_as(total, x), *found]


def _through_w(rows: Sequence[Tensor], given: Sequence[TrainedOne], base: torch.dtype, dtype: torch.dtype) -> Tensor:
    """``sum dy W``, ``[tokens, in]`` in this dtype."""
    total: Tensor | None = None
    for row, one in zip(rows, given, strict=True):
        row, weight = cast_one(row, base), cast_one(one.weight, base)
        if total is None:
            total = cast_one(torch.mm(row, weight), dtype)
        elif base is dtype:
            total.addmm_(row, weight)
        else:
            total.add_(torch.mm(row, weight))  # under autocast each product is rounded, and their sum is not
    return present(total)
