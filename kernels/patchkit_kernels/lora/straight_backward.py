"""The gradients of projections of the structure that people train: see :mod:`.straight` for the formulas.

With dropout, each adapter has read an input of its own::

    dA = dt^T d(x)              dx = sum d(dt A) + sum dy W

They are made in two halves, as in :mod:`patchkit_kernels.lora.backward`: dx, for which x is not needed, and the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.shapes import as_rows
from patchkit_kernels.lora.straight import Trained, cast, stacked
from patchkit_kernels.ops.dropout_once import drop_again, factors_of


class TrainedFlow(NamedTuple):
    """What flows back through the projections, and is used again for the gradients of A and B.

    Attributes:
        rows: dy of each, ``[tokens, out]``, in the dtype of the adapters' products; so are all others here.
        factors_b: B of each.
        d_ts: dt of each, ``[tokens, rank]``; without dropout one tensor of all side by side.
        dropped: with dropout, what each element of x was multiplied with, for each adapter.
    """

    rows: list[Tensor]
    factors_b: list[Tensor]
    d_ts: Sequence[Tensor]
    dropped: Sequence[Tensor | None]


def input_gradient(
    grads: Sequence[Tensor],
    given: Trained,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: Precision,
    dtype: torch.dtype | None,
) -> tuple[Tensor | None, TrainedFlow]:
    """dx ``[tokens, in]``, and what flows back.

    Args:
        grads: dy of each projection, ``[..., out]``.
        given: the projections.
        kept: t and, with dropout, the mask of each.
        precision: as in forward.
        dtype: of dx; None if it is not needed.
    """
    ts, masks = kept
    rows = [as_rows(grad) for grad in grads]
    lora_rows, up = cast(rows, precision.lora), cast(given.factors_b, precision.lora)
    if not masks:
        d_t = _side_by_side(lora_rows, up, ts, given.scalings)
        total = None
        if dtype is not None:
            total = torch.mm(d_t, stacked(given.factors_a, precision.lora))
            total = total if total.dtype is dtype else total.to(dtype)
            for dy, weight in zip(cast(rows, precision.base), dense(given.weights, precision.base), strict=True):
                if dy.dtype is dtype:
                    total.addmm_(dy, weight)
                else:
                    total.add_(torch.mm(dy, weight))  # under autocast each product is rounded, and their sum is not
        return total, tuple.__new__(TrainedFlow, (lora_rows, up, (d_t,), ()))
    d_ts = [
        torch.addmm(t, dy, factor, beta=0, alpha=scaling)  # beta=0: t is not read
        for dy, factor, t, scaling in zip(lora_rows, up, ts, given.scalings, strict=True)
    ]
    size = rows[0].shape[0], given.factors_a[0].shape[1]
    dropped = [factors_of(mask, p, *size, precision.drawn) for mask, p in zip(masks, given.dropouts, strict=True)]
    total = None
    if dtype is not None:
        total = _base_gradient(cast(rows, precision.base), dense(given.weights, precision.base), dtype)
        factors_a = cast(given.factors_a, precision.lora)
        for d_t, factor, mask, p, multiplied in zip(d_ts, factors_a, masks, given.dropouts, dropped, strict=True):
            total.add_(drop_again(torch.mm(d_t, factor), mask, p, multiplied))
    return total, tuple.__new__(TrainedFlow, (lora_rows, up, d_ts, dropped))


def _side_by_side(
    rows: Sequence[Tensor], factors_b: Sequence[Tensor], ts: Sequence[Tensor], scalings: Sequence[float]
) -> Tensor:
    """``dt = s dy B`` of every adapter side by side, ``[tokens, sum of ranks]``."""
    if len(rows) == 1:
        return torch.addmm(ts[0], rows[0], factors_b[0], beta=0, alpha=scalings[0])
    ranks = [t.shape[1] for t in ts]
    whole = rows[0].new_empty((rows[0].shape[0], sum(ranks)))
    pieces = torch.split_with_sizes(whole, ranks, 1)
    for dy, factor, t, scaling, piece in zip(rows, factors_b, ts, scalings, pieces, strict=True):
        torch.addmm(t, dy, factor, beta=0, alpha=scaling, out=piece)
    return whole


def _base_gradient(rows: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``sum dy W``, ``[tokens, in]`` in this dtype."""
    total = torch.mm(rows[0], weights[0])
    total = total if total.dtype is dtype else total.to(dtype)
    for dy, weight in zip(rows[1:], weights[1:], strict=True):
        if dy.dtype is dtype:
            total.addmm_(dy, weight)
        else:
            total.add_(torch.mm(dy, weight))
    return total


def factor_gradients(
    flow: TrainedFlow,
    flat: Tensor,
    given: Trained,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: Precision,
) -> list[Tensor]:
    """Every dA, and then every dB. Each owns its memory.

    Args:
        flow: of :func:`input_gradient`.
        flat: x, ``[tokens, in]``.
        given: as there.
        kept: as there.
        precision: as there.
    """
    rows, factors_b, d_ts, dropped = flow
    (ts, masks), stored, lora = kept, given.factors_b[0].dtype, precision.lora
    d_as: Sequence[Tensor]
    if masks:
        drawn_x = flat if flat.dtype is precision.drawn else flat.to(precision.drawn)
        d_as = []
        for d_t, mask, p, factors in zip(d_ts, masks, given.dropouts, dropped, strict=True):
            x = drop_again(drawn_x, mask, p, factors)
            d_as.append(torch.mm(d_t.t(), x if x.dtype is lora else x.to(lora)))
        d_as = cast(d_as, stored)
    else:
        whole = torch.mm(d_ts[0].t(), flat if flat.dtype is lora else flat.to(lora))
        whole = whole if whole.dtype is stored else whole.to(stored)
        d_as = (whole,) if len(ts) == 1 else _copies(whole, [t.shape[1] for t in ts])
    d_bs = [
        torch.addmm(factor, dy.t(), t, beta=0, alpha=scaling)  # beta=0: B is not read
        for dy, factor, t, scaling in zip(rows, factors_b, ts, given.scalings, strict=True)
    ]
    return [*d_as, *cast(d_bs, stored)]


def _copies(whole: Tensor, ranks: Sequence[int]) -> Sequence[Tensor]:
    """The parts of a matrix, row after row, each in memory of its own."""
    found: Any = torch.split_with_sizes_copy(whole, ranks)  # type: ignore[func-returns-value]
    return found  # type: ignore[no-any-return]


def dense(weights: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """W of each projection, ``[out, in]`` in this dtype, dequantised if need be."""
    found = [weight if isinstance(weight, Tensor) else weight.dense() for weight in weights]
    return [weight if weight.dtype is dtype else weight.to(dtype) for weight in found]
