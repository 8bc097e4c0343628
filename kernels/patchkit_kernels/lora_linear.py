"""Linear projections with LoRA adapters as one autograd function that keeps only its input for backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.arguments import (
    Structure,
    flatten,
    flatten_kept,
    gather_grads,
    needs_of,
    structure_of,
    unflatten,
    unflatten_kept,
)
from patchkit_kernels.differentiable import differentiable_backward, wants_graph
from patchkit_kernels.project import project, project_again
from patchkit_kernels.project_backward import input_backward, parameter_backward
from patchkit_kernels.projection import Precision, Projection


class LoraProjections(torch.autograd.Function):
    """See :mod:`patchkit_kernels.projection` for the formulas."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, structure: Structure, precision: tuple[torch.dtype, ...], *tensors: Any
    ) -> tuple[Tensor, ...]:
        """Each ``[tokens, out_i]``; saves x ``[..., in]``, the parameters, and what dropout and DoRA need."""
        ctx.structure, ctx.precision = structure, precision
        needs = needs_of(ctx.needs_input_grad[3:], structure)
        outputs, kept = project(x, unflatten(tensors, structure), Precision(*precision), needs)
        ctx.keys, to_keep = flatten_kept(kept)
        ctx.save_for_backward(x, *tensors, *to_keep)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        x, *saved = ctx.saved_tensors
        precision, needed = Precision(*ctx.precision), ctx.needs_input_grad
        count = len(needed) - 3
        tensors, kept = saved[:count], unflatten_kept(ctx.keys, saved[count:])
        if wants_graph():

            def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
                return project_again(x, unflatten(tensors, ctx.structure), precision, kept)

            d_x, *rest = differentiable_backward(again, (x, *tensors), (needed[0], *needed[3:]), grads)
            return d_x, None, None, *rest
        projections, needs = unflatten(tensors, ctx.structure), needs_of(needed[3:], ctx.structure)
        flow = input_backward(grads, projections, precision, needs, kept, x.dtype if needed[0] else None)
        flat = x.reshape(-1, x.shape[-1])
        found = parameter_backward(flow, grads, flat, projections, precision, needs, kept)
        return None if flow.x is None else flow.x.view(x.shape), None, None, *gather_grads(found)


def lora_projections(x: Tensor, projections: Sequence[Projection], precision: Precision) -> tuple[Tensor, ...]:
    """Several projections of one input, for instance q, k and v.

    Between forward and backward only x is kept (and the parameters, which are kept anyway); with dropout also one bit
    for each element of x and adapter, with DoRA's trained magnitude one tensor like the output.

    Args:
        x: ``[..., in]``; any leading shape, empty included. It is copied only if it is not contiguous.
        projections: with or without adapters; frozen and trainable tensors in any mixture. Dropout is drawn in their
            order.
        precision: see :class:`~patchkit_kernels.projection.Precision`.

    Returns:
        For each projection ``[..., out_i]`` in ``precision.output``.
    """
    outputs = LoraProjections.apply(  # type: ignore[no-untyped-call]
        x, structure_of(projections), tuple(precision), *flatten(projections)
    )
    # Reshaped out here: a view made inside the function could not be modified in place by what follows.
    # An output that depends on nothing trainable does not require a gradient, as if it had been computed alone.
    outputs = tuple(y if _needs_gradient(x, p) else y.detach() for y, p in zip(outputs, projections, strict=True))
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


def _needs_gradient(x: Tensor, projection: Projection) -> bool:
    return x.requires_grad or any(t is not None and t.requires_grad for t in flatten([projection]))


def lora_linear(x: Tensor, projection: Projection, precision: Precision) -> Tensor:
    """One projection: :func:`lora_projections` for a single one, ``[..., in]`` to ``[..., out]``."""
    return lora_projections(x, (projection,), precision)[0]
