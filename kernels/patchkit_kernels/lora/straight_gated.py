"""A gated MLP of the structure that people train, with gate and up apart, without the lists of :mod:`.straight`.

Nearly every model has this MLP. What it computes and keeps is what :mod:`.straight_mlp` does; its products are the
same, in the same order, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.bare_operations import applier, bare
from patchkit_kernels.lora.differentiable import wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.hidden_state import hidden_dtype
from patchkit_kernels.lora.projection import Precision, Projection, present
from patchkit_kernels.lora.shapes import as_rows, shaped, shaped_as
from patchkit_kernels.lora.straight import reduced_dropped
from patchkit_kernels.lora.straight_backward import each_of
from patchkit_kernels.lora.straight_dropped import dropped_gradients
from patchkit_kernels.lora.straight_mlp import TrainedParts, gradients_in_lists
from patchkit_kernels.lora.straight_one import (
    TrainedOne,
    a_of,
    expanded,
    factor_gradients,
    flown_back,
    in_lists,
    projected,
    rows_of,
    through_b,
    trained_one,
    unwatched,
    with_casts,
)
from patchkit_kernels.lora.straight_saving import (
    apart,
    cast_to_keep,
    mask_to_keep,
    masks_to_keep,
    stack_to_keep,
    unless_hooked,
)
from patchkit_kernels.lora.wide_sums import through_factors_a
from patchkit_kernels.ops.activations import GATED, Activation
from patchkit_kernels.ops.casts import cast_one
from patchkit_kernels.ops.registration import dispatch_modes


class TrainedGated(NamedTuple):
    """The MLP.

    Attributes:
        first: gate or up, which reads x first.
        second: the other one; A and B of both are of one dtype, and dropout is drawn for both or for none.
        down: the projection of the hidden state.
        activation: its name.
        gate_first: whether the first is the gate.
        precision: of all products.
    """

    first: TrainedOne
    second: TrainedOne
    down: TrainedOne
    activation: Activation
    gate_first: bool
    precision: Precision


def trained_gated(
    x: Tensor,
    inputs: Sequence[Projection],
    down: Projection,
    activation: Activation,
    precision: Precision,
    gate_first: bool | None,
) -> TrainedGated | None:
    """The MLP of x ``[..., hidden]``, if it is of this structure and nothing else is asked of it; else None."""
    if gate_first is None or len(inputs) != 2 or not unwatched(x, precision, down.weight):
        return None
    first, second, last = trained_one(inputs[0]), trained_one(inputs[1]), trained_one(down)
    if first is None or second is None or last is None:
        return None
    if first.lora_a.dtype is not second.lora_a.dtype or (first.dropout == 0.0) is not (second.dropout == 0.0):
        return None
    return tuple.__new__(TrainedGated, (first, second, last, activation, gate_first, precision))


class TrainedGatedMLP(torch.autograd.Function):
    """``down(act(gate(x)) * up(x))``."""

    @staticmethod
    def forward(ctx: Any, given: TrainedGated, x: Tensor, *factors: Tensor) -> Tensor:
        """``[..., hidden]``; keeps x, gate, up, t of each, masks, the factors of down and B, and perhaps A and W.

        ``factors`` are A of the first two, B of them, and A and B of down.
        """
        first, second, down, *others = ctx.given = given
        precision, x_needed = given.precision, ctx.needs_input_grad[1]
        down = with_casts(down, precision, x)
        if x_needed:
            first = with_casts(first, precision, x, alone=False)
            second = with_casts(second, precision, x, alone=False)
        given = tuple.__new__(TrainedGated, (first, second, down, *others))
        y, both, (w_first, w_second, w_down), t_down, mask, ts, masks, stack, *read = bare(
            _computed, x, given, (x_needed, True)
        )
        ctx.beside = given, (*map(unless_hooked, read), stack_to_keep(stack, x) if x_needed else None)
        a_first, a_second, *factors_b, a_down, b_down = factors
        # A and W of the first two are not read where x needs no gradient; all else is. In the order of lists, which may
        # make all this again for a checkpoint.
        rest = (a_first, a_second, w_first, w_second) if x_needed else ()
        mask, masks = mask_to_keep(mask), masks_to_keep(masks, 2)
        ctx.save_for_backward(x, *both, t_down, mask, b_down, a_down, w_down, *ts, *masks, *factors_b, *rest)
        return shaped(y, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of every factor."""
        given: TrainedGated
        (given, read), ctx.beside = ctx.beside or (ctx.given, (None, None, None)), None  # freed with the saved tensors
        _, x_needed, *needed = ctx.needs_input_grad
        x, y_first, y_second, t_down, mask, b_down, a_down, w_down, t_first, t_second, *rest = ctx.saved_tensors
        (a_first, _, w_first, *rest_first), (a_second, _, w_second, *rest_second), down, *others = given
        if x_needed:
            *rest, a_first, a_second, w_first, w_second = rest
        *masks, b_first, b_second = rest
        first = tuple.__new__(TrainedOne, (a_first, b_first, w_first, *rest_first))
        second = tuple.__new__(TrainedOne, (a_second, b_second, w_second, *rest_second))
        down = tuple.__new__(TrainedOne, (a_down, b_down, w_down, *down[3:]))
        given = tuple.__new__(TrainedGated, (first, second, down, *others))
        kept = (y_first, y_second), (t_first, t_second, t_down), mask, masks
        if False in needed or dispatch_modes() or wants_ordinary_operations((grad,)):
            return (None, *_in_lists(grad, x, kept, given, (x_needed, *needed)))
        found: list[Tensor | None] = bare(_gradients, grad, x, kept, read, given, x_needed)
        return (None, *found)


Kept = tuple[tuple[Tensor, Tensor], Sequence[Tensor], Tensor | None, Sequence[Tensor]]
"""What the first two yield, t of each, the mask of down, and the masks of the first two, or one of both."""


def _computed(x: Tensor, given: TrainedGated, keeps_w: tuple[bool, bool]) -> tuple[Any, ...]:
    """What follows, of x ``[..., hidden]``.

    ``y`` ``[tokens, hidden]``, what the first two yield, every W, t and mask of down, t and masks of the first two,
    their A's as one, and what the adapters of these and of down have read, perhaps. ``keeps_w`` is of the first two and
    of down.
    """
    first, second, down, activation, gate_first, precision = given
    base, lora, _, _ = precision
    flat = rows_of(x, precision)
    masks: Sequence[Tensor] = ()
    read: Any = None
    stack: Tensor | None = None
    if first.dropout:
        factors = a_of(first, lora), a_of(second, lora)
        dropouts = first.dropout, second.dropout
        (t_first, t_second), masks, read = reduced_dropped(x, flat, factors, dropouts, precision)
    else:
        factors = first.lora_a, second.lora_a
        stack = cast_one(torch.cat(factors), lora)
        lora_x = cast_one(flat, lora)
        t, read = F.linear(lora_x, stack), cast_to_keep(lora_x, x)
        t_first, t_second = t.split_with_sizes((factors[0].shape[0], factors[1].shape[0]), 1)
    base_x = cast_one(flat, base)
    y_first, w_first = expanded(base_x, t_first, first, precision, keeps_w[0])
    y_second, w_second = expanded(base_x, t_second, second, precision, keeps_w[0])
    functions = GATED[activation]
    hidden = functions.run(y_first, y_second) if gate_first else functions.run(y_second, y_first)
    y, t_down, mask, w_down, of_down = projected(hidden, down, precision, keeps_w[1])
    weights, ts = (w_first, w_second, w_down), (t_first, t_second)
    return y, (y_first, y_second), weights, t_down, mask, ts, masks, stack, read, of_down


def _gradients(
    grad: Tensor, x: Tensor, kept: Kept, read: Sequence[Any], given: TrainedGated, x_needed: bool
) -> list[Tensor | None]:
    """Where every gradient is wanted, but perhaps that of x."""
    first, second, down, activation, gate_first, precision = given
    (y_first, y_second), (t_first, t_second, t_down), mask, masks = kept
    read_x, read_hidden, stack = read
    through, flow = flown_back(as_rows(grad), t_down, mask, down, precision, precision.output)
    d_hidden = present(through)
    functions = GATED[activation]
    gate, up = (y_first, y_second) if gate_first else (y_second, y_first)
    dtype = None if read_hidden is not None else hidden_dtype(precision, dropped=mask is not None)
    d_up, hidden = functions.run_backward_recompute(d_hidden, gate, up, dtype=dtype)
    d_down = factor_gradients(flow, hidden, (t_down, mask, read_hidden), down, precision)
    rows = (d_hidden, d_up) if gate_first else (d_up, d_hidden)
    del through, d_hidden, flow, hidden, d_up
    if first.dropout:
        made = (t_first, t_second), masks, read_x
        return [*dropped_gradients(rows, x, made, (first, second), precision, x_needed), *d_down]
    flat, dtype = as_rows(x), x.dtype if x_needed else None
    base, lora, _, _ = precision
    ranks = t_first.shape[1], t_second.shape[1]
    d_t = t_first.new_empty(t_first.shape[0], ranks[0] + ranks[1])
    d_first, d_second = d_t.split_with_sizes(ranks, 1)
    d_bs = through_b(rows[0], t_first, first, lora, d_first), through_b(rows[1], t_second, second, lora, d_second)
    total = None
    if dtype is not None:
        if stack is None:
            stack = cast_one(torch.cat((first.lora_a, second.lora_a)), lora)
        total = through_factors_a(d_t, stack, dtype)
        for row, one in zip(rows, (first, second), strict=True):
            if base is dtype:
                total.addmm_(cast_one(row, base), cast_one(one.weight, base))
            else:
                total.add_(torch.mm(cast_one(row, base), cast_one(one.weight, base)))
        total = shaped_as(total, x)
    whole = cast_one(torch.mm(d_t.t(), cast_one(flat, lora) if read_x is None else read_x), first.lora_a.dtype)
    return [total, *each_of(whole, ranks), *d_bs, *d_down]


def _in_lists(grad: Tensor, x: Tensor, kept: Kept, given: TrainedGated, needed: Sequence[bool]) -> list[Tensor | None]:
    """Where not every gradient is wanted, they are to be differentiated, or something looks at operations."""
    both, ts, mask, masks = kept
    *_, down, activation, gate_first, precision = given
    parts = TrainedParts(in_lists(given[:2]), in_lists((down,)), activation, gate_first, precision)
    masks = apart(masks, len(both)) if dispatch_modes() else masks
    made, made_down = (ts[:2], masks), (ts[2:], () if mask is None else (mask,))
    return gradients_in_lists(grad, x, both, (made, made_down), parts, needed)


_apply = applier(TrainedGatedMLP)


def apply_trained_gated(given: TrainedGated, x: Tensor) -> Tensor:
    """:class:`TrainedGatedMLP` of x ``[..., hidden]``."""
    first, second, down, *_ = given
    if not torch.is_grad_enabled():  # nothing is kept
        return shaped(bare(_computed, x, given, (False, False))[0], x)
    y: Tensor = _apply(given, x, first.lora_a, second.lora_a, first.lora_b, second.lora_b, down.lora_a, down.lora_b)
    return y
