"""Three projections of one input of the structure that people train, q, k and v, without the lists of :mod:`.straight`.

What they compute and keep is what :mod:`.straight_linear` does; the products are the same, in the same order, and so
are the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.bare_operations import applier, bare
from patchkit_kernels.lora.differentiable import all_given, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.lora.shapes import as_rows, shaped, shaped_as
from patchkit_kernels.lora.straight import reduced_dropped
from patchkit_kernels.lora.straight_backward import each_of
from patchkit_kernels.lora.straight_dropped import dropped_gradients
from patchkit_kernels.lora.straight_linear import general_gradients, gradients
from patchkit_kernels.lora.straight_one import (
    TrainedOne,
    a_of,
    expanded,
    in_lists,
    rows_of,
    through_b,
    trained_one,
    unwatched,
    with_casts,
)
from patchkit_kernels.lora.straight_saving import apart, cast_to_keep, masks_to_keep, stack_to_keep, unless_hooked
from patchkit_kernels.lora.wide_sums import through_factors_a
from patchkit_kernels.ops.casts import cast_one
from patchkit_kernels.ops.registration import dispatch_modes

TrainedThree = tuple[TrainedOne, TrainedOne, TrainedOne]
"""A and B of all are of one dtype, and dropout is drawn for all or for none."""

Kept = tuple[tuple[Tensor, Tensor, Tensor], Sequence[Tensor], Any]
"""t of each, with dropout the mask of each, or one of all, and perhaps what the adapters have read; with dropout it is
a tensor for each."""


def trained_three(x: Tensor, projections: Sequence[Projection], precision: Precision) -> TrainedThree | None:
    """Projections of x ``[..., in]``, if they are of this structure and nothing else is asked of them; else None."""
    if len(projections) != 3:
        return None
    q, k, v = projections
    if not unwatched(x, precision, q.weight, k.weight, v.weight):
        return None
    first, second, third = trained_one(q), trained_one(k), trained_one(v)
    if first is None or second is None or third is None:
        return None
    if not first.lora_a.dtype is second.lora_a.dtype is third.lora_a.dtype:
        return None
    dropped = first.dropout == 0.0
    if dropped is not (second.dropout == 0.0) or dropped is not (third.dropout == 0.0):
        return None
    return first, second, third


class TrainedProjectionsOfThree(torch.autograd.Function):
    """Three projections, for which :func:`trained_three` has found what is given."""

    @staticmethod
    def forward(
        ctx: Any, call: tuple[TrainedThree, Precision], x: Tensor, *factors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each ``[..., out_i]``; keeps x, t, masks and B, and where x needs a gradient A and W.

        ``factors`` are every A, and then every B.
        """
        ctx.set_materialize_grads(False)
        (first, second, third), precision = ctx.call = call
        x_needed = ctx.needs_input_grad[1]
        if x_needed:
            first = with_casts(first, precision, x, alone=False)
            second = with_casts(second, precision, x, alone=False)
            third = with_casts(third, precision, x, alone=False)
        given = first, second, third
        (y_first, y_second, y_third), weights, ts, masks, read, stack = bare(_computed, x, given, precision, x_needed)
        ctx.beside = given, unless_hooked(read), stack_to_keep(stack, x) if x_needed else None
        # In the order of lists, which may make all this again for a checkpoint.
        rest = (*factors[:3], *weights) if x_needed else ()
        ctx.save_for_backward(x, *ts, *masks_to_keep(masks, 3), *factors[3:], *rest)
        return shaped(y_first, x), shaped(y_second, x), shaped(y_third, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every factor."""
        _, x_needed, *needed = ctx.needs_input_grad
        given, precision = ctx.call
        (given, read, stack), ctx.beside = ctx.beside or (given, None, None), None  # freed with the saved tensors
        (a_first, _, w_first, *first), (a_second, _, w_second, *second), (a_third, _, w_third, *third) = given
        x, t_first, t_second, t_third, *rest = ctx.saved_tensors
        if x_needed:
            *rest, a_first, a_second, a_third, w_first, w_second, w_third = rest
        *masks, b_first, b_second, b_third = rest
        given = (
            tuple.__new__(TrainedOne, (a_first, b_first, w_first, *first)),
            tuple.__new__(TrainedOne, (a_second, b_second, w_second, *second)),
            tuple.__new__(TrainedOne, (a_third, b_third, w_third, *third)),
        )
        kept = (t_first, t_second, t_third), masks, read
        if False in needed or dispatch_modes() or wants_ordinary_operations(grads) or not all_given(grads):
            return (None, *_in_lists(grads, x, kept[:2], given, precision, (x_needed, *needed)))
        found: list[Tensor | None] = bare(_gradients, grads, x, kept, given, precision, stack, x_needed)
        return (None, *found)


def _computed(x: Tensor, given: TrainedThree, precision: Precision, keeps_w: bool) -> tuple[Any, ...]:
    """``y`` of each, ``[tokens, out]``, W of each, t and masks, what adapters have read, and the A's as one."""
    (first, second, third), (base, lora, _, _) = given, precision
    flat = rows_of(x, precision)
    ts: Sequence[Tensor]
    masks: Sequence[Tensor] = ()
    read: Any = None
    stack: Tensor | None = None
    if first.dropout:
        factors = a_of(first, lora), a_of(second, lora), a_of(third, lora)
        ts, masks, read = reduced_dropped(x, flat, factors, (first.dropout, second.dropout, third.dropout), precision)
    else:
        factors = first.lora_a, second.lora_a, third.lora_a
        stack = cast_one(torch.cat(factors), lora)
        lora_x = cast_one(flat, lora)
        t, read = F.linear(lora_x, stack), cast_to_keep(lora_x, x)
        ts = t.split_with_sizes((factors[0].shape[0], factors[1].shape[0], factors[2].shape[0]), 1)
    base_x, (t_first, t_second, t_third) = cast_one(flat, base), ts
    y_first, w_first = expanded(base_x, t_first, first, precision, keeps_w)
    y_second, w_second = expanded(base_x, t_second, second, precision, keeps_w)
    y_third, w_third = expanded(base_x, t_third, third, precision, keeps_w)
    return (y_first, y_second, y_third), (w_first, w_second, w_third), ts, masks, read, stack


def _gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    kept: Kept,
    given: TrainedThree,
    precision: Precision,
    stack: Tensor | None,
    x_needed: bool,
) -> list[Tensor | None]:
    """Where every gradient is given and wanted, but perhaps that of x; ``stack`` is what forward has kept of it."""
    if given[0].dropout:
        return dropped_gradients(grads, x, kept, given, precision, x_needed)
    (base, lora, _, _), flat, dtype = precision, as_rows(x), x.dtype if x_needed else None
    first, second, third = given
    (t_first, t_second, t_third), _, read = kept
    rows = as_rows(grads[0]), as_rows(grads[1]), as_rows(grads[2])
    ranks = t_first.shape[1], t_second.shape[1], t_third.shape[1]
    d_t = t_first.new_empty(t_first.shape[0], ranks[0] + ranks[1] + ranks[2])
    d_first, d_second, d_third = d_t.split_with_sizes(ranks, 1)
    d_bs = (
        through_b(rows[0], t_first, first, lora, d_first),
        through_b(rows[1], t_second, second, lora, d_second),
        through_b(rows[2], t_third, third, lora, d_third),
    )
    total = None
    if dtype is not None:
        if stack is None:
            stack = cast_one(torch.cat((first.lora_a, second.lora_a, third.lora_a)), lora)
        total = through_factors_a(d_t, stack, dtype)
        for row, one in zip(rows, given, strict=True):
            if base is dtype:
                total.addmm_(cast_one(row, base), cast_one(one.weight, base))
            else:
                total.add_(torch.mm(cast_one(row, base), cast_one(one.weight, base)))
        total = shaped_as(total, x)
    whole = cast_one(torch.mm(d_t.t(), cast_one(flat, lora) if read is None else read), first.lora_a.dtype)
    return [total, *each_of(whole, ranks), *d_bs]


def _in_lists(
    grads: Sequence[Tensor | None],
    x: Tensor,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    given: TrainedThree,
    precision: Precision,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Where not every gradient is given and wanted, they are to be differentiated, or something looks at operations."""
    ts, masks = kept
    several, made = in_lists(given), (ts, apart(masks, 3) if dispatch_modes() else masks)
    if False in needed[1:] or wants_ordinary_operations(grads) or not all_given(grads):
        return general_gradients(grads, x, made, several, needed, precision)
    return gradients(grads, x, made, several, precision, needed[0])  # type: ignore[arg-type]


_apply = applier(TrainedProjectionsOfThree)


def apply_trained_three(given: TrainedThree, precision: Precision, x: Tensor) -> tuple[Tensor, ...]:
    """:class:`TrainedProjectionsOfThree` of x ``[..., in]``: each ``[..., out_i]``."""
    first, second, third = given
    if not torch.is_grad_enabled():  # nothing is kept
        return tuple([shaped(y, x) for y in bare(_computed, x, given, precision, False)[0]])
    factors = first.lora_a, second.lora_a, third.lora_a, first.lora_b, second.lora_b, third.lora_b
    outputs: tuple[Tensor, ...] = _apply((given, precision), x, *factors)
    return outputs
