"""Linear projections with LoRA adapters as one autograd function that keeps only its input for backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.lora.arguments import (
    Structure,
    flatten,
    flatten_grads,
    flatten_kept,
    needs_of,
    structure_of,
    unflatten,
    unflatten_kept,
)
from patchkit_kernels.lora.backward import input_backward, parameter_backward
from patchkit_kernels.lora.call import Call
from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.dora_factor import with_factors
from patchkit_kernels.lora.forward import project, project_again
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.lora.saving import keep, kept, read_by_backward, unread_input
from patchkit_kernels.lora.shapes import as_rows, with_leading
from patchkit_kernels.lora.straight import trained
from patchkit_kernels.lora.straight_linear import apply_trained
from patchkit_kernels.lora.straight_one import apply_trained_one, trained_one, unwatched
from patchkit_kernels.lora.straight_three import apply_trained_three, trained_three


class LoraProjections(torch.autograd.Function):
    """See :mod:`patchkit_kernels.lora.projection` for the formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        unread: Tensor | None,
        structure: Structure,
        precision: tuple[torch.dtype, ...],
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        """Each ``[..., out_i]``; saves what :mod:`.saving` says, or ``unread`` in the place of x."""
        ctx.structure, ctx.precision, ctx.unread = structure, precision, unread
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        call = Call(unflatten(tensors, structure), needs_of(needed, structure), Precision(*precision))
        flat, made = project(x, call, remakes=x_needed and unread is None)
        outputs = [with_leading(y, x) for y in flat]
        read = keep(ctx, tensors, read_by_backward(call, x_needed=x_needed))
        ctx.save_for_backward(x if unread is None else None, *read, *flatten_kept(made))
        ctx.set_materialize_grads(False)
        if not x_needed:
            # What depends on nothing trainable does not require a gradient, as if it had been computed alone.
            constant = [y for y, needs in zip(outputs, call.needs, strict=True) if not needs.any]
            ctx.mark_non_differentiable(*constant)
        return tuple(outputs)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        x, *saved = ctx.saved_tensors
        structure, precision = ctx.structure, Precision(*ctx.precision)
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        tensors = kept(ctx, saved[: len(needed)])
        made = unflatten_kept(saved[len(needed) :], structure)
        like = ctx.unread if x is None else x
        if wants_ordinary_operations(grads):

            def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
                outputs = project_again(x, unflatten(tensors, structure), precision, made)
                return [with_leading(y, x) for y in outputs]

            d_x, *rest = differentiable_backward(again, (like, *tensors), (x_needed, *needed), grads)
            return _to_arguments(d_x, rest)
        call = Call(unflatten(tensors, structure), needs_of(needed, structure), precision)
        rows = [None if grad is None else as_rows(grad) for grad in grads]
        flow = input_backward(rows, call, made, like.dtype if x_needed else None)
        found = parameter_backward(flow, None if x is None else as_rows(x))
        d_x = None if flow.x is None else with_leading(flow.x, like)
        return _to_arguments(d_x, flatten_grads(found, structure))


def _of_arguments(needed: Sequence[bool]) -> tuple[bool, Sequence[bool]]:
    """Of what is said of each argument of the function, what is said of x and of the projections' tensors."""
    x, _unread, _structure, _precision, *tensors = needed
    return x, tensors


def _to_arguments(d_x: Tensor | None, d_tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument: x, unread, structure, precision, and the projections' tensors."""
    return d_x, None, None, None, *d_tensors


def lora_projections(x: Tensor, projections: Sequence[Projection], precision: Precision) -> tuple[Tensor, ...]:
    """Several projections of one input, for instance q, k and v.

    Between forward and backward only x is kept (and parameters, which are kept anyway); with dropout also one bit
    for each element of x and adapter, with DoRA's trained magnitude one tensor like the output, and where x needs no
    gradient, one tensor of the rank's width for each trained B. See :mod:`patchkit_kernels.lora.saving`.

    Args:
        x: ``[..., in]``; any leading shape, empty included. It is copied only if it is not contiguous.
        projections: with or without adapters; frozen and trainable tensors in any mixture. Dropout is drawn in their
            order.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.

    Returns:
        For each projection ``[..., out_i]`` in ``precision.output``: contiguous, a view of nothing.
    """
    three = trained_three(x, projections, precision)
    if three is not None:
        return apply_trained_three(three, precision, x)
    given = trained(projections)
    if given is not None:
        return apply_trained(given, precision, x)
    projections = with_factors(projections, precision)
    outputs: tuple[Tensor, ...] = LoraProjections.apply(  # type: ignore[no-untyped-call]
        x, unread_input(x, projections), structure_of(projections), tuple(precision), *flatten(projections)
    )
    return outputs


def lora_linear(x: Tensor, projection: Projection, precision: Precision) -> Tensor:
    """One projection: :func:`lora_projections` for a single one, ``[..., in]`` to ``[..., out]``."""
    if unwatched(x, precision, projection.weight):
        given = trained_one(projection)
        if given is not None:
            return apply_trained_one(given, precision, x)
    return lora_projections(x, (projection,), precision)[0]
