"""The gradients of projections of the structure that people train: see :mod:`.straight` for the formulas.

With dropout, each adapter has read an input of its own::

    dA = dt^T d(x)              dx = sum d(dt A) + sum dy W

They are made in two halves, as in :mod:`patchkit_kernels.lora.backward`: dx, for which x is not needed, and the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.shapes import as_rows
from patchkit_kernels.lora.straight import Trained, stacked
from patchkit_kernels.lora.wide_sums import is_wider, through_factors_a
from patchkit_kernels.ops.casts import cast, cast_one
from patchkit_kernels.ops.dropout_once import (
    add_dropped_again_,
    drop_again,
    factors_of,
    factors_together,
    reads_any_dtype,
    scale_left,
)


class TrainedFlow(NamedTuple):
    """What flows back through the projections, and is used again for the gradients of A and B.

    Attributes:
        rows: dy of each, ``[tokens, out]``, in the dtype of the adapters' products; so are all others here.
        factors_b: B of each.
        d_ts: dt of each, ``[tokens, rank]``; without dropout one tensor of all side by side. Where there are factors,
            multiplied with what is left of dropout's scale.
        dropped: with dropout, what each element of x is multiplied with, for each adapter.
        together: all of ``dropped`` as one tensor, if it is one, ``[adapters, tokens, in]``.
    """

    rows: list[Tensor]
    factors_b: list[Tensor]
    d_ts: Sequence[Tensor]
    dropped: Sequence[Tensor | None]
    together: Tensor | None = None


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
        kept: t and, with dropout, the mask of each, or one of all: see :func:`~.straight_saving.restored`.
        precision: as in forward.
        dtype: of dx; None if it is not needed.
    """
    ts, masks = kept
    rows = [as_rows(grad) for grad in grads]
    base, lora, _, drawn = precision
    lora_rows, up = cast(rows, lora), cast(given.factors_b, lora)
    total = None
    if not masks:
        d_t = _side_by_side(lora_rows, up, ts, given.scalings)
        if dtype is not None:
            total = through_factors_a(d_t, stacked(given, lora), dtype)
            _add_base_(total, cast(rows, base), dense(given.weights, base))
        return total, tuple.__new__(TrainedFlow, (lora_rows, up, (d_t,), (), None))
    size, count, dropouts = (rows[0].shape[0], given.factors_a[0].shape[1]), len(ts), given.dropouts
    dropped: Sequence[Tensor | None]
    if len(masks) == count:
        dropped = [factors_of(mask, p, *size, lora, drawn) for mask, p in zip(masks, dropouts, strict=True)]
        together = dropped[0] if count == 1 else None
    else:
        together = factors_together(masks[0], dropouts[0], count, *size, lora, drawn)
        dropped = together.unbind()
    scalings = [
        scaling if factors is None else scaling * scale_left(p, lora, drawn)
        for scaling, factors, p in zip(given.scalings, dropped, dropouts, strict=True)
    ]
    d_ts = _each_d_t(lora_rows, up, ts, scalings)
    if dtype is not None:
        base_rows, weights = cast(rows, base), dense(given.weights, base)
        total = cast_one(torch.mm(base_rows[0], weights[0]), dtype)
        _add_base_(total, base_rows[1:], weights[1:])
        wide: Tensor | None = None
        for i, (d_t, factor, factors) in enumerate(zip(d_ts, cast(given.factors_a, lora), dropped, strict=True)):
            product = torch.mm(d_t, factor)
            if factors is None or not is_wider(lora, dtype):
                # One mask for all where there are factors, which is not looked at then.
                add_dropped_(total, product, masks[min(i, len(masks) - 1)], factors, dropouts[i])
            else:
                wide = times_factors(product, factors, wide)
        if wide is not None:
            total.add_(wide)
    return total, tuple.__new__(TrainedFlow, (lora_rows, up, d_ts, dropped, together))


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


def add_dropped_(total: Tensor, product: Tensor, mask: Tensor, factors: Tensor | None, dropout: float) -> None:
    """Add ``d(dt A)`` ``[tokens, in]`` to dx; the product ``dt A`` is written over."""
    if factors is None:
        add_dropped_again_(total, product, mask, dropout)
    elif product.dtype is total.dtype:
        total.addcmul_(product, factors)
    else:
        # addcmul_ of several dtypes makes copies of both operands. This product is exact where it is of a narrower
        # dtype than dx: the factors are zeros and ones then.
        total.add_(product.mul_(factors))


def times_factors(product: Tensor, factors: Tensor, total: Tensor | None) -> Tensor:
    """``d(dt A)`` added to a sum of such, in their own dtype: whatever the form of the masks.

    Where it is wider than that of dx (:func:`is_wider`), to which one sum is added then, and not each of them. In a
    narrower one the sum would be rounded, or overflow, where dx is not. The first product is written over.
    """
    return product.mul_(factors) if total is None else total.addcmul_(product, factors)


def to_drop(flat: Tensor, mask: Tensor, factors: Tensor | None, precision: Precision) -> Tensor:
    """x ``[tokens, in]`` as :func:`dropped_rows` takes it: cast once for all adapters."""
    if factors is None and reads_any_dtype(flat, mask):
        return flat
    return cast_one(flat, precision.drawn if factors is None else precision.lora)


def dropped_rows(x: Tensor, mask: Tensor, factors: Tensor | None, dropout: float, lora: torch.dtype) -> Tensor:
    """What an adapter has read, ``[tokens, in]`` in its products' dtype; with factors, but for :func:`scale_left`.

    ``x`` is of :func:`to_drop`.
    """
    return drop_again(x, mask, dropout, lora) if factors is None else x * factors


def _each_d_t(
    rows: Sequence[Tensor], factors_b: Sequence[Tensor], ts: Sequence[Tensor], scalings: Sequence[float]
) -> list[Tensor]:
    """``dt = s dy B`` of every adapter."""
    return [
        torch.addmm(t, dy, factor, beta=0, alpha=scaling)  # beta=0: t is not read
        for dy, factor, t, scaling in zip(rows, factors_b, ts, scalings, strict=True)
    ]


def _add_base_(total: Tensor, rows: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Add ``dy W`` of each, to ``[tokens, in]``."""
    for dy, weight in zip(rows, weights, strict=True):
        if dy.dtype is total.dtype:
            total.addmm_(dy, weight)
        else:
            total.add_(torch.mm(dy, weight))  # under autocast each product is rounded, and their sum is not


def factor_gradients(
    flow: TrainedFlow,
    flat: Tensor,
    given: Trained,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: Precision,
) -> list[Tensor]:
    """Every dA, and then every dB: see :func:`each_of`.

    Args:
        flow: of :func:`input_gradient`.
        flat: x, ``[tokens, in]``.
        given: as there.
        kept: as there.
        precision: as there.
    """
    rows, factors_b, d_ts, dropped, together = flow
    (ts, masks), stored, lora = kept, given.factors_b[0].dtype, precision.lora
    d_as: Sequence[Tensor]
    if masks:
        read = _dropped_again(flat, masks, given.dropouts, dropped, together, precision)
        d_as = [torch.mm(d_t.t(), x) for d_t, x in zip(d_ts, read, strict=True)]
        d_as = cast(d_as, stored)
    else:
        whole = cast_one(torch.mm(d_ts[0].t(), cast_one(flat, lora)), stored)
        d_as = each_of(whole, [t.shape[1] for t in ts])
    d_bs = [
        torch.addmm(factor, dy.t(), t, beta=0, alpha=scaling)  # beta=0: B is not read
        for dy, factor, t, scaling in zip(rows, factors_b, ts, given.scalings, strict=True)
    ]
    return [*d_as, *cast(d_bs, stored)]


def _dropped_again(
    flat: Tensor,
    masks: Sequence[Tensor],
    dropouts: Sequence[float],
    dropped: Sequence[Tensor | None],
    together: Tensor | None,
    precision: Precision,
) -> Iterator[Tensor]:
    """What each adapter has read, ``[tokens, in]``; written over the factors that were made of bits for this."""
    if together is None:
        x = to_drop(flat, masks[0], dropped[0], precision)
        for mask, p, factors in zip(masks, dropouts, dropped, strict=True):
            yield dropped_rows(x, mask, factors, p, precision.lora)
        return
    x = cast_one(flat, precision.lora)
    whole = together * x if together is masks[0] else together.mul_(x)
    yield from (whole,) if whole.dim() == 2 else whole.unbind()


def each_of(whole: Tensor, ranks: Sequence[int]) -> Sequence[Tensor]:
    """dA of each adapter, of the dA of all on top of each other: they share its memory, and no element of it.

    So autograd leaves gradients of what ``torch.cat`` has read.
    """
    if len(ranks) == 1:
        return (whole,)
    parts = torch.split_with_sizes(whole, ranks)
    # Autograd watches views where it is not passed by, and forbids to detach them in place.
    return [part.detach() for part in parts] if parts[0]._is_view() else parts


def dense(weights: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    """W of each projection, ``[out, in]`` in this dtype, dequantised if need be."""
    found = [weight if isinstance(weight, Tensor) else weight.dense() for weight in weights]
    return [cast_one(weight, dtype) for weight in found]
