"""Linear projections of the structure that people train, as one autograd function: see :mod:`.straight`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.lora.backward import input_backward, parameter_backward
from patchkit_kernels.lora.bare_operations import applier, at_once, bare
from patchkit_kernels.lora.differentiable import (
    all_given,
    differentiable_backward,
    wants_ordinary_operations,
    without_autocast,
)
from patchkit_kernels.lora.forward import project_again
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.shapes import as_rows, shaped, shaped_as, with_leading
from patchkit_kernels.lora.straight import Trained
from patchkit_kernels.lora.straight_arithmetic import factor_gradients, input_gradient, project
from patchkit_kernels.lora.straight_saving import (
    call_of,
    factor_grads,
    projections_of,
    restored,
    to_keep,
    with_casts,
    with_stack,
)


class TrainedProjections(torch.autograd.Function):
    """Several projections of one input, for which :func:`~.straight.trained` has found what is given."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Trained, Precision], x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        """Each ``[..., out_i]``; keeps x, and t of each. ``factors`` are every A, and then every B."""
        given, precision = ctx.call = call
        ctx.stack = None
        if ctx.needs_input_grad[1]:
            given = with_casts(with_stack(given, precision.lora, x), precision, x)
            ctx.stack = given.stack
        flat, ts, masks = bare(project, x, given, precision) if given.dense else project(x, given, precision)
        ctx.save_for_backward(x, *to_keep(given, ts, masks, x_needed=ctx.needs_input_grad[1]))
        ctx.set_materialize_grads(False)
        return tuple([shaped(y, x) for y in flat])

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every factor."""
        x, *saved = ctx.saved_tensors
        given, precision = ctx.call
        stack, ctx.stack = ctx.stack, None  # freed with the saved tensors
        kept, given = restored(saved, given, stack)
        _, x_needed, *needed = ctx.needs_input_grad
        if wants_ordinary_operations(grads) or False in needed or not all_given(grads):
            return (None, *general_gradients(grads, x, kept, given, (x_needed, *needed), precision))
        compute = bare if given.dense else at_once
        found: list[Tensor | None] = compute(gradients, grads, x, kept, given, precision, x_needed)
        return (None, *found)


def gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    given: Trained,
    precision: Precision,
    x_needed: bool,
) -> list[Tensor | None]:
    """Where every gradient is given and wanted, but perhaps that of x."""
    d_x, flow = input_gradient(grads, given, kept, precision, x.dtype if x_needed else None)
    found = factor_gradients(flow, as_rows(x), given, kept, precision)
    return [None if d_x is None else shaped_as(d_x, x), *found]


def general_gradients(
    grads: Sequence[Tensor | None],
    x: Tensor,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    given: Trained,
    needed: Sequence[bool],
    precision: Precision,
) -> list[Tensor | None]:
    """Where not every gradient is given and wanted, or they are to be differentiated or are batched."""
    call, made = call_of(given, kept, needed[1:], precision)
    if wants_ordinary_operations(grads):

        def again(x: Tensor, *factors: Tensor) -> list[Tensor]:
            outputs = project_again(x, projections_of(given, factors), precision, made)
            return [with_leading(y, x) for y in outputs]

        return differentiable_backward(again, (x, *given.factors_a, *given.factors_b), needed, grads)
    rows = [None if grad is None else as_rows(grad) for grad in grads]
    flow = input_backward(rows, call, made, x.dtype if needed[0] else None)
    d_x = None if flow.x is None else with_leading(flow.x, x)
    return [d_x, *factor_grads(parameter_backward(flow, as_rows(x)))]


_apply = applier(TrainedProjections)


def apply_trained(given: Trained, precision: Precision, x: Tensor) -> tuple[Tensor, ...]:
    """:class:`TrainedProjections` of x ``[..., in]``: each ``[..., out_i]``."""
    if not torch.is_grad_enabled():  # nothing is kept
        found = bare(project, x, given, precision) if given.dense else project(x, given, precision)
        return tuple([shaped(y, x) for y in found[0]])
    outputs: tuple[Tensor, ...] = _apply((given, precision), x, *given.factors_a, *given.factors_b)
    return outputs
