"""An MLP with LoRA adapters as one autograd function, with a gate or without.

    gate, up = projections of x                      [tokens, intermediate] each
    y = down(dropout(act(gate) * up))                [tokens, hidden]
    y = down(dropout(act(up)))                       without a gate

For backward it keeps x, gate and up; the activation is computed again (as in Liger-Kernel's gated MLPs). Of dropout it
keeps one bit per element. What is not read is not kept: see :mod:`patchkit_kernels.lora.saving`. What stands between
the projections: :mod:`patchkit_kernels.lora.hidden_state`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.lora.arguments import (
    Structure,
    flatten,
    flatten_grads,
    flatten_kept,
    structure_of,
    unflatten,
    unflatten_kept,
)
from patchkit_kernels.lora.backward import input_backward, parameter_backward
from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.dora_factor import with_factors
from patchkit_kernels.lora.forward import project, project_again
from patchkit_kernels.lora.hidden_state import functions_of, inputs_of, limited
from patchkit_kernels.lora.memory import Memory, rows_of_tile
from patchkit_kernels.lora.mlp_parts import calls_of, drop_again, reads_hidden, split, through_activation
from patchkit_kernels.lora.projection import Precision, Projection, dropout_scale
from patchkit_kernels.lora.remade_mlp import apply_remade_mlp
from patchkit_kernels.lora.remade_passes import Form
from patchkit_kernels.lora.saving import keep, kept, read_by_backward, unread_input
from patchkit_kernels.lora.shapes import as_rows, with_leading
from patchkit_kernels.lora.stand_in import substitute
from patchkit_kernels.lora.straight import trained
from patchkit_kernels.lora.straight_gated import apply_trained_gated, trained_gated
from patchkit_kernels.lora.straight_mlp import TrainedParts, apply_trained_mlp
from patchkit_kernels.lora.straight_two import apply_trained_two, trained_two
from patchkit_kernels.ops.activations import Activation
from patchkit_kernels.ops.dropout import draw_mask, masked, masked_, pack_mask


class LoraMLP(torch.autograd.Function):
    """The last projection is down; the others read x: gate and up, one that yields both, or up alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        unread: Tensor | None,
        activation: Activation,
        gate_first: bool | None,
        limit: float | None,
        dropout: float,
        structure: Structure,
        precision: tuple[torch.dtype, ...],
        *tensors: Any,
    ) -> Tensor:
        """``[..., hidden]``; saves what :mod:`patchkit_kernels.lora.saving` says, with ``unread`` in the place of x.

        In between it saves what the projections of x yield, or down's input if nothing flows back through them.
        """
        ctx.activation, ctx.gate_first, ctx.structure, ctx.precision = activation, gate_first, structure, precision
        ctx.limit, ctx.dropout, ctx.unread = limit, dropout, unread
        ctx.set_materialize_grads(False)
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        into, down = calls_of(tensors, needed, structure, Precision(*precision))
        flows_back = x_needed or any(needs.any for needs in into.needs)
        projected, made = project(x, into, remakes=x_needed and unread is None)
        hidden = limited(functions_of(activation, gate_first), limit).forward(*inputs_of(projected, gate_first))
        mask = _drop(hidden, dropout)
        (y,), made_down = project(hidden, down, remakes=flows_back)
        between = projected if flows_back else [hidden] if reads_hidden(down.needs[0], remakes=False) else []
        read = read_by_backward(into, x_needed=x_needed) + read_by_backward(down, x_needed=flows_back)
        to_save = between, keep(ctx, tensors, read), flatten_kept(made + made_down), [mask if flows_back else None]
        ctx.counts = [len(part) for part in to_save]
        ctx.save_for_backward(x if unread is None else None, *[tensor for part in to_save for tensor in part])
        return with_leading(y, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        x, *saved = ctx.saved_tensors
        between, read, to_keep, (mask,) = split(saved, ctx.counts)
        structure, precision = ctx.structure, Precision(*ctx.precision)
        tensors, (*made, made_down) = kept(ctx, read), unflatten_kept(to_keep, structure)
        if grad is None:
            return _to_arguments(None, [None] * len(tensors))
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        into, down = calls_of(tensors, needed, structure, precision)
        flows_back = x_needed or any(needs.any for needs in into.needs)
        like = ctx.unread if x is None else x
        if wants_ordinary_operations([grad]):

            def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
                *inputs, down = unflatten(tensors, structure)
                projected = project_again(x, inputs, precision, made)
                if flows_back:
                    projected = [substitute(*pair) for pair in zip(between, projected, strict=True)]
                if flows_back or not between:
                    functions = limited(functions_of(ctx.activation, ctx.gate_first), ctx.limit)
                    hidden = functions.reference(*inputs_of(projected, ctx.gate_first))
                    hidden = hidden if mask is None else masked(hidden, mask, dropout_scale(ctx.dropout))
                else:
                    hidden = between[0]
                return [with_leading(project_again(hidden, [down], precision, [made_down])[0], x)]

            d_x, *rest = differentiable_backward(again, (like, *tensors), (x_needed, *needed), [grad])
            return _to_arguments(d_x, rest)
        rows, hidden_dtype = as_rows(grad), precision.output if flows_back else None
        flow = input_backward([rows], down, [made_down], hidden_dtype)
        hidden, grads = between[0] if between and not flows_back else None, None
        if flow.x is not None:
            functions = limited(functions_of(ctx.activation, ctx.gate_first), ctx.limit)
            drop = partial(drop_again, mask=mask, probability=ctx.dropout)
            hidden, grads = through_activation(
                functions,
                drop(flow.x),
                between,
                ctx.gate_first,
                with_hidden=reads_hidden(down.needs[0], remakes=True),
            )
            hidden = drop(hidden)
        found = parameter_backward(flow, hidden)
        if grads is None:
            return _to_arguments(None, flatten_grads([None] * len(made) + found, structure))
        del hidden, flow
        flow = input_backward(grads, into, made, like.dtype if x_needed else None)
        found = parameter_backward(flow, None if x is None else as_rows(x)) + found
        d_x = None if flow.x is None else with_leading(flow.x, like)
        return _to_arguments(d_x, flatten_grads(found, structure))


def _drop(hidden: Tensor, probability: float) -> Tensor | None:
    """Draw dropout for the hidden state, a buffer of ours, and apply it there. The packed mask, if there is one."""
    if probability == 0.0:
        return None
    mask = pack_mask(draw_mask(hidden, probability))
    masked_(hidden, mask, dropout_scale(probability))
    return mask


def _of_arguments(needed: Sequence[bool]) -> tuple[bool, Sequence[bool]]:
    """Of what is said of each argument of the function, what is said of x and of the projections' tensors."""
    x, _unread, _activation, _gate_first, _limit, _dropout, _structure, _precision, *tensors = needed
    return x, tensors


def _to_arguments(d_x: Tensor | None, d_tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument: those before the tensors have none, but for x."""
    return d_x, None, None, None, None, None, None, None, *d_tensors


def apply_lora_mlp(
    x: Tensor,
    inputs: Sequence[Projection],
    down: Projection,
    activation: Activation,
    precision: Precision,
    gate_first: bool | None,
    dropout: float,
    limit: float | None = None,
    memory: Memory | None = None,
) -> Tensor:
    """:class:`LoraMLP` of its projections, or what computes the same and keeps less.

    Args:
        x: ``[..., hidden]``.
        inputs: the projections that read x.
        down: the down projection.
        activation: its name.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        gate_first: see :mod:`patchkit_kernels.lora.hidden_state`.
        dropout: the probability with which an element of the hidden state is zeroed.
        limit: of gate and up, see there; None for none.
        memory: see :mod:`patchkit_kernels.lora.memory`; None to keep what the projections of x yield.
    """
    tokens = rows = 0
    if memory is not None:
        tokens = math.prod(x.shape[:-1])
        rows = rows_of_tile(memory, tokens, x.shape[-1])
    if not dropout and limit is None and rows >= tokens:
        if memory is None:
            gated = trained_gated(x, inputs, down, activation, precision, gate_first)
            if gated is not None:
                return apply_trained_gated(gated, x)
            two = trained_two(x, inputs, down, activation, precision, gate_first)
            if two is not None:
                return apply_trained_two(two, x)
        into, last = trained(inputs), trained((down,))
        if into is not None and last is not None:
            return apply_trained_mlp(TrainedParts(into, last, activation, gate_first, precision, memory is not None), x)
    projections = with_factors((*inputs, down), precision)
    if memory is not None:
        return apply_remade_mlp(x, projections, Form(activation, gate_first, limit, dropout, rows), precision)
    y: Tensor = LoraMLP.apply(  # type: ignore[no-untyped-call]
        x,
        unread_input(x, projections[:-1]),
        activation,
        gate_first,
        limit,
        dropout,
        structure_of(projections),
        tuple(precision),
        *flatten(projections),
    )
    return y
