"""The gated MLP with LoRA adapters as one autograd function.

    gate, up = projections of x                      [tokens, intermediate] each
    y = down(act(gate) * up)                         [tokens, hidden]

For backward it keeps x, gate and up; act(gate) * up is computed again (as in Liger-Kernel's gated MLPs). What is not
read is not kept: see :mod:`patchkit_kernels.lora.saving`. One projection that yields gate and up together is supported
by splitting its output in two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from patchkit_kernels.lora.call import Call, Needs
from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.dora_factor import with_factors
from patchkit_kernels.lora.forward import project, project_again
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.lora.saving import keep, kept, read_by_backward, unread_input
from patchkit_kernels.lora.shapes import as_rows, with_leading
from patchkit_kernels.lora.stand_in import substitute
from patchkit_kernels.ops.activations import GATED, Activation


class LoraGatedMLP(torch.autograd.Function):
    """The last projection is down; the others read x: gate and up, or one that yields both."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        unread: Tensor | None,
        activation: Activation,
        gate_first: bool,
        structure: Structure,
        precision: tuple[torch.dtype, ...],
        *tensors: Any,
    ) -> Tensor:
        """``[..., hidden]``; saves what :mod:`patchkit_kernels.lora.saving` says, with ``unread`` in the place of x.

        In between it saves gate and up, or act(gate) * up if nothing flows back through them.
        """
        ctx.activation, ctx.gate_first, ctx.structure, ctx.precision = activation, gate_first, structure, precision
        ctx.unread = unread
        ctx.set_materialize_grads(False)
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        into, down = _calls(tensors, needed, structure, Precision(*precision))
        flows_back = x_needed or any(needs.any for needs in into.needs)
        projected, made = project(x, into, remakes=x_needed and unread is None)
        gate, up = split_gate_up(projected, gate_first)
        hidden = GATED[activation].forward(gate, up)
        (y,), made_down = project(hidden, down, remakes=flows_back)
        between = projected if flows_back else [hidden] if _reads_hidden(down.needs[0], remakes=False) else []
        read = read_by_backward(into, x_needed=x_needed) + read_by_backward(down, x_needed=flows_back)
        to_save = between, keep(ctx, tensors, read), flatten_kept(made + made_down)
        ctx.counts = [len(part) for part in to_save]
        ctx.save_for_backward(x if unread is None else None, *[tensor for part in to_save for tensor in part])
        return with_leading(y, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        x, *saved = ctx.saved_tensors
        between, read, to_keep = _split(saved, ctx.counts)
        structure, precision = ctx.structure, Precision(*ctx.precision)
        tensors, (*made, made_down) = kept(ctx, read), unflatten_kept(to_keep, structure)
        if grad is None:
            return _to_arguments(None, [None] * len(tensors))
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        into, down = _calls(tensors, needed, structure, precision)
        flows_back = x_needed or any(needs.any for needs in into.needs)
        like = ctx.unread if x is None else x
        if wants_ordinary_operations([grad]):

            def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
                *inputs, down = unflatten(tensors, structure)
                projected = project_again(x, inputs, precision, made)
                if flows_back:
                    projected = [substitute(*pair) for pair in zip(between, projected, strict=True)]
                gate, up = split_gate_up(projected, ctx.gate_first)
                hidden = GATED[ctx.activation].reference(gate, up) if flows_back or not between else between[0]
                return [with_leading(project_again(hidden, [down], precision, [made_down])[0], x)]

            d_x, *rest = differentiable_backward(again, (like, *tensors), (x_needed, *needed), [grad])
            return _to_arguments(d_x, rest)
        rows, hidden_dtype = as_rows(grad), precision.output if flows_back else None
        flow = input_backward([rows], down, [made_down], hidden_dtype)
        hidden, halves = between[0] if between and not flows_back else None, None
        if flow.x is not None:
            gate, up = split_gate_up(between, ctx.gate_first)
            hidden, halves = _through_activation(ctx.activation, flow.x, gate, up, down.needs[0])
        found = parameter_backward(flow, hidden)
        if halves is None:
            return _to_arguments(None, flatten_grads([None] * len(made) + found, structure))
        del hidden, flow
        joined = _join_gate_up(halves, len(made), ctx.gate_first)
        flow = input_backward(joined, into, made, like.dtype if x_needed else None)
        found = parameter_backward(flow, None if x is None else as_rows(x)) + found
        d_x = None if flow.x is None else with_leading(flow.x, like)
        return _to_arguments(d_x, flatten_grads(found, structure))


def _of_arguments(needed: Sequence[bool]) -> tuple[bool, Sequence[bool]]:
    """Of what is said of each argument of the function, what is said of x and of the projections' tensors."""
    x, _unread, _activation, _gate_first, _structure, _precision, *tensors = needed
    return x, tensors


def _to_arguments(d_x: Tensor | None, d_tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument: x, unread, activation, gate_first, structure, precision, and the tensors."""
    return d_x, None, None, None, None, None, *d_tensors


def _calls(
    tensors: Sequence[Any], needed: Sequence[bool], structure: Structure, precision: Precision
) -> tuple[Call, Call]:
    """The projections that read x, and down."""
    projections, needs = unflatten(tensors, structure), needs_of(needed, structure)
    return Call(projections[:-1], needs[:-1], precision), Call(projections[-1:], needs[-1:], precision)


def _split(tensors: Sequence[Any], counts: Sequence[int]) -> Iterator[Sequence[Any]]:
    start = 0
    for count in counts:
        yield tensors[start : start + count]
        start += count


def _reads_hidden(down_needs: Needs, *, remakes: bool) -> bool:
    """Whether gradients of down need its input: for W and A, and for B where t is made again."""
    return down_needs.weight or any(a.lora_a or (remakes and a.lora_b) for a in down_needs.adapters)


def _through_activation(
    activation: Activation, d_hidden: Tensor, gate: Tensor, up: Tensor, down_needs: Needs
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
    """The hidden state again, if down's gradients need it, and the gradients of gate and up.

    Both at once read gate and up once. d_hidden is a buffer of ours that nothing else holds: it is written over.
    """
    functions = GATED[activation]
    if not _reads_hidden(down_needs, remakes=True):
        return None, functions.backward(d_hidden, gate, up)
    d_up, hidden = functions.backward_recompute(d_hidden, gate, up)
    return hidden, (d_hidden, d_up)


def split_gate_up(projected: Sequence[Tensor], gate_first: bool) -> tuple[Tensor, Tensor]:
    """Gate and up, each ``[tokens, intermediate]``: given apart, or as two halves (views) of one tensor."""
    first, second = projected if len(projected) == 2 else projected[0].chunk(2, -1)
    return (first, second) if gate_first else (second, first)


def _join_gate_up(halves: tuple[Tensor, Tensor], count: int, gate_first: bool) -> list[Tensor]:
    in_order = halves if gate_first else halves[::-1]
    return list(in_order) if count == 2 else [torch.cat(in_order, -1)]


def lora_gated_mlp(
    x: Tensor,
    inputs: Sequence[Projection],
    down: Projection,
    activation: Activation,
    precision: Precision,
    *,
    gate_first: bool = True,
) -> Tensor:
    """``down(act(gate(x)) * up(x))`` with adapters.

    Args:
        x: ``[..., hidden]``; any leading shape, empty included.
        inputs: the gate and the up projection in the order in which upstream calls them, or one that yields both, side
            by side in its last dimension. Dropout is drawn in their order, then for down.
        down: the down projection.
        activation: name of the activation of the gate.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        gate_first: whether the first of ``inputs``, or the first half of the joint one, is the gate.

    Returns:
        ``[..., hidden]`` in ``precision.output``.
    """
    projections = with_factors((*inputs, down), precision)
    y: Tensor = LoraGatedMLP.apply(  # type: ignore[no-untyped-call]
        x,
        unread_input(x, projections[:-1]),
        activation,
        gate_first,
        structure_of(projections),
        tuple(precision),
        *flatten(projections),
    )
    return y
