"""An MLP of the structure that people train, with a gate or without, as one autograd function: see :mod:`.straight`.

What it computes and keeps is what :mod:`patchkit_kernels.lora.mlp_function` says, and t of each projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.backward import input_backward, parameter_backward
from patchkit_kernels.lora.bare_operations import applier, at_once, bare
from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.forward import project_again
from patchkit_kernels.lora.hidden_state import back_through, functions_of, hidden_dtype, inputs_of
from patchkit_kernels.lora.projection import Precision, present
from patchkit_kernels.lora.quantized_again import as_in_forward, autocast_of
from patchkit_kernels.lora.shapes import as_rows, shaped, shaped_as, with_leading
from patchkit_kernels.lora.stand_in import substitute
from patchkit_kernels.lora.straight import Trained
from patchkit_kernels.lora.straight_arithmetic import factor_gradients, input_gradient, outputs_of, project
from patchkit_kernels.lora.straight_backward import TrainedFlow
from patchkit_kernels.lora.straight_in_activation import computed, gradients, in_activation
from patchkit_kernels.lora.straight_saving import (
    call_of,
    count_kept,
    factor_grads,
    projections_of,
    restored,
    to_keep,
    with_casts,
    with_stack,
)
from patchkit_kernels.ops.activations import Activation


class TrainedParts(NamedTuple):
    """An MLP, all of whose projections are of this structure.

    Attributes:
        into: the projections of x: gate and up, one that yields both, or up alone.
        down: the projection of the hidden state.
        activation: its name.
        gate_first: see :mod:`patchkit_kernels.lora.hidden_state`.
        precision: of all products.
        remade: whether what the projections of x yield is made again in backward, and not kept.
    """

    into: Trained
    down: Trained
    activation: Activation
    gate_first: bool | None
    precision: Precision
    remade: bool = False


class TrainedMLP(torch.autograd.Function):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))``."""

    @staticmethod
    def forward(ctx: Any, parts: TrainedParts, x: Tensor, *factors: Tensor) -> Tensor:
        """``[..., hidden]``; keeps x, what the projections of x yield (or what that is made of again), and t of each.

        ``factors`` are every A of the projections of x, every B of them, and A and B of down.
        """
        into, down, _, _, precision, remade = ctx.parts = parts
        ctx.autocast = autocast_of(x, into.weights) if remade else None
        if not remade:  # else less is to be kept than usual
            if ctx.needs_input_grad[1]:
                into = with_casts(with_stack(into, precision.lora, x), precision, x)
            down = with_casts(down, precision, x)
            parts = tuple.__new__(TrainedParts, (into, down, *parts[2:]))
        ctx.stack = into.stack
        dense = into.dense and down.dense
        projected, made, made_down, y = (bare if dense else at_once)(_computed, x, parts)
        kept = to_keep(into, *made, x_needed=remade or ctx.needs_input_grad[1])
        between = into.biases if remade else projected
        ctx.save_for_backward(x, *between, *to_keep(down, *made_down, x_needed=True), *kept)
        return shaped(y, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of every factor."""
        parts: TrainedParts = ctx.parts
        into, down, _, _, precision, remade = parts
        saved, first = ctx.saved_tensors, 1 + len(into.scalings)
        last = first + count_kept(down)
        x, projected = saved[0], saved[1:first]
        kept_down, down = restored(saved[first:last], down)
        stack, ctx.stack = ctx.stack, None  # freed with the saved tensors
        kept, into = restored(saved[last:], into, stack)
        if remade:
            weights = [one if isinstance(one, Tensor) else as_in_forward(one, ctx.autocast) for one in into.weights]
            into = into._replace(biases=list(projected), weights=weights)
            projected = outputs_of(as_rows(x), kept[0], into, precision)
        _, x_needed, *needed = ctx.needs_input_grad
        parts = tuple.__new__(TrainedParts, (into, down, *parts[2:]))
        return (None, *gradients_in_lists(grad, x, projected, (kept, kept_down), parts, (x_needed, *needed)))


def _computed(x: Tensor, parts: TrainedParts) -> tuple[Any, ...]:
    """What the projections of x yield, t and masks of theirs and of down's, and y ``[tokens, hidden]``."""
    if in_activation(x, parts) and not parts.remade:  # else what is made again would not be what was read
        return computed(x, parts)
    into, down, activation, gate_first, precision, _ = parts
    projected, *made = project(x, into, precision)
    hidden = functions_of(activation, gate_first).run(*inputs_of(projected, gate_first))
    (y,), *made_down = project(hidden, down, precision)
    return projected, made, made_down, y


def gradients_in_lists(
    grad: Tensor,
    x: Tensor,
    projected: Sequence[Tensor],
    kept: tuple[Any, Any],
    parts: TrainedParts,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Of x, if it needs one, and of every factor; without autocast.

    Args:
        grad: of the output.
        x: the input.
        projected: what the projections of x yield.
        kept: t and the masks of these projections, and of down.
        parts: the MLP.
        needed: whether x, and each factor, needs a gradient.
    """
    if wants_ordinary_operations([grad]) or False in needed[1:]:
        return _general(grad, x, projected, kept, parts, needed)
    compute = bare if parts.into.dense and parts.down.dense else at_once
    found: list[Tensor | None] = compute(_gradients, grad, x, projected, kept, parts, needed[0])
    return found


def _gradients(
    grad: Tensor, x: Tensor, projected: Sequence[Tensor], kept: tuple[Any, Any], parts: TrainedParts, x_needed: bool
) -> list[Tensor | None]:
    """Where every gradient is wanted, but perhaps that of x."""
    if in_activation(x, parts):
        return gradients(grad, x, projected, kept, parts, x_needed)
    into, down, activation, gate_first, precision, _ = parts
    kept_into, kept_down = kept
    d_hidden, flow = input_gradient([grad], down, kept_down, precision, precision.output)
    # The other kinds of arithmetic read it as it was.
    dtype = hidden_dtype(precision, dropped=bool(kept_down[1])) if type(flow) is TrainedFlow else None
    functions = functions_of(activation, gate_first)
    grads, hidden = back_through(functions, present(d_hidden), projected, gate_first, hidden_dtype=dtype)
    of_down = factor_gradients(flow, hidden, down, kept_down, precision)
    del hidden, flow, d_hidden
    d_x, flow = input_gradient(grads, into, kept_into, precision, x.dtype if x_needed else None)
    found = factor_gradients(flow, as_rows(x), into, kept_into, precision)
    return [None if d_x is None else shaped_as(d_x, x), *found, *of_down]


def _general(
    grad: Tensor,
    x: Tensor,
    projected: Sequence[Tensor],
    kept: tuple[Any, Any],
    parts: TrainedParts,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Where not every gradient is wanted, or they are to be differentiated or are batched."""
    into, down, activation, gate_first, precision, _ = parts
    functions, count = functions_of(activation, gate_first), len(projected)
    x_needed, *factors_needed = needed
    call, made = call_of(into, kept[0], factors_needed[: 2 * count], precision)
    call_down, made_down = call_of(down, kept[1], factors_needed[2 * count :], precision)
    if wants_ordinary_operations([grad]):

        def again(x: Tensor, *factors: Tensor) -> list[Tensor]:
            found = project_again(x, projections_of(into, factors[: 2 * count]), precision, made)
            found = [substitute(*pair) for pair in zip(projected, found, strict=True)]
            hidden = functions.reference(*inputs_of(found, gate_first))
            last = projections_of(down, factors[2 * count :])
            return [with_leading(project_again(hidden, last, precision, made_down)[0], x)]

        factors = (*into.factors_a, *into.factors_b, *down.factors_a, *down.factors_b)
        return differentiable_backward(again, (x, *factors), needed, [grad])
    flow = input_backward([as_rows(grad)], call_down, made_down, precision.output)
    rows, hidden = back_through(functions, present(flow.x), projected, gate_first)
    found = parameter_backward(flow, hidden)
    del hidden
    flow = input_backward(rows, call, made, x.dtype if x_needed else None)
    d_x = None if flow.x is None else with_leading(flow.x, x)
    return [d_x, *factor_grads(parameter_backward(flow, as_rows(x))), *factor_grads(found)]


_apply = applier(TrainedMLP)


def apply_trained_mlp(parts: TrainedParts, x: Tensor) -> Tensor:
    """:class:`TrainedMLP` of x ``[..., hidden]``."""
    into, down = parts[:2]
    if not torch.is_grad_enabled():  # nothing is kept
        return shaped((bare if into.dense and down.dense else at_once)(_computed, x, parts)[-1], x)
    y: Tensor = _apply(parts, x, *into.factors_a, *into.factors_b, *down.factors_a, *down.factors_b)
    return y
