"""The gated MLP with LoRA adapters as one autograd function.

    gate, up = projections of x                      [tokens, intermediate] each
    y = down(act(gate) * up)                         [tokens, hidden]

For backward it keeps x, gate and up; act(gate) * up is computed again (as in Liger-Kernel's gated MLPs). One projection
that yields gate and up together is supported by splitting its output in two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.activations import ACTIVATIONS, Activation
from patchkit_kernels.arguments import (
    Structure,
    flatten,
    flatten_kept,
    gather_grads,
    needs_of,
    no_grads,
    structure_of,
    unflatten,
    unflatten_kept,
)
from patchkit_kernels.differentiable import differentiable_backward, wants_graph
from patchkit_kernels.project import project, project_again
from patchkit_kernels.project_backward import input_backward, parameter_backward
from patchkit_kernels.projection import Kept, Key, Needs, Precision, Projection


class LoraGatedMLP(torch.autograd.Function):
    """The last projection is down; the others read x: gate and up, or one that yields both."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activation: Activation,
        gate_first: bool,
        structure: Structure,
        precision: tuple[torch.dtype, ...],
        *tensors: Any,
    ) -> Tensor:
        """``[tokens, hidden]``; saves x, what the first projections yield, parameters, and what adapters keep."""
        ctx.activation, ctx.gate_first, ctx.structure, ctx.precision = activation, gate_first, structure, precision
        ctx.set_materialize_grads(False)
        *inputs, down = unflatten(tensors, structure)
        *input_needs, down_needs = needs_of(ctx.needs_input_grad[5:], structure)
        projected, kept = project(x, inputs, Precision(*precision), input_needs)
        gate, up = split_gate_up(projected, gate_first)
        hidden = ACTIVATIONS[activation].forward(gate, up)
        (y,), down_kept = project(hidden, [down], Precision(*precision), [down_needs])
        (ctx.keys, to_keep), (ctx.down_keys, down_to_keep) = flatten_kept(kept), flatten_kept(down_kept)
        ctx.counts = [len(projected), len(tensors), len(to_keep), len(down_to_keep)]
        ctx.save_for_backward(x, *projected, *tensors, *to_keep, *down_to_keep)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        x, *saved = ctx.saved_tensors
        projected, tensors, to_keep, down_to_keep = _split(saved, ctx.counts)
        kept, down_kept = unflatten_kept(ctx.keys, to_keep), unflatten_kept(ctx.down_keys, down_to_keep)
        precision, needed = Precision(*ctx.precision), ctx.needs_input_grad
        nothing = (None, None, None, None)
        if grad is None:
            return (None, *nothing, *[None] * len(tensors))
        if wants_graph():

            def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
                projections = unflatten(tensors, ctx.structure)
                return [_composed(x, ctx.activation, ctx.gate_first, projections, precision, kept, down_kept)]

            d_x, *rest = differentiable_backward(again, (x, *tensors), (needed[0], *needed[5:]), [grad])
            return (d_x, *nothing, *rest)
        *inputs, down = unflatten(tensors, ctx.structure)
        *input_needs, down_needs = needs_of(needed[5:], ctx.structure)
        gate, up = split_gate_up(projected, ctx.gate_first)
        flows_back = needed[0] or any(map(_needs_any, input_needs))
        hidden_dtype = precision.output if flows_back else None
        flow = input_backward([grad], [down], precision, [down_needs], down_kept, hidden_dtype)
        hidden, halves = _through_activation(ctx.activation, flow.x, gate, up, down_needs)
        down_grads = parameter_backward(flow, [grad], hidden, [down], precision, [down_needs], down_kept)
        if halves is None:
            return (None, *nothing, *gather_grads([*no_grads(ctx.structure[:-1]), *down_grads]))
        del hidden, flow
        joined = _join_gate_up(halves, len(inputs), ctx.gate_first)
        flow = input_backward(joined, inputs, precision, input_needs, kept, x.dtype if needed[0] else None)
        flat = x.reshape(-1, x.shape[-1])
        input_grads = parameter_backward(flow, joined, flat, inputs, precision, input_needs, kept)
        d_x = None if flow.x is None else flow.x.view(x.shape)
        return (d_x, *nothing, *gather_grads([*input_grads, *down_grads]))


def _split(tensors: Sequence[Any], counts: Sequence[int]) -> Iterator[Sequence[Any]]:
    start = 0
    for count in counts:
        yield tensors[start : start + count]
        start += count


def _needs_any(needs: Needs) -> bool:
    return needs.weight or needs.bias or any(map(any, needs.adapters))


def _through_activation(
    activation: Activation, d_hidden: Tensor | None, gate: Tensor, up: Tensor, down_needs: Needs
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """The hidden state again, if W, A or B of down needs it, and the gradients of gate and up, if d_hidden is given.

    Both at once read gate and up once. d_hidden is a buffer of ours that nothing else holds: it is written over.
    """
    functions = ACTIVATIONS[activation]
    reads_hidden = down_needs.weight or any(adapter.lora_a or adapter.lora_b for adapter in down_needs.adapters)
    if d_hidden is None:
        return functions.forward(gate, up) if reads_hidden else None, None
    if not reads_hidden:
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


def _composed(
    x: Tensor,
    activation: Activation,
    gate_first: bool,
    projections: Sequence[Projection],
    precision: Precision,
    kept: Mapping[Key, Kept],
    down_kept: Mapping[Key, Kept],
) -> Tensor:
    """The same value by differentiable operations alone."""
    *inputs, down = projections
    gate, up = split_gate_up(project_again(x, inputs, precision, kept), gate_first)
    return project_again(ACTIVATIONS[activation].reference(gate, up), [down], precision, down_kept)[0]


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
        precision: see :class:`~patchkit_kernels.projection.Precision`.
        gate_first: whether the first of ``inputs``, or the first half of the joint one, is the gate.

    Returns:
        ``[..., hidden]`` in ``precision.output``.
    """
    projections = (*inputs, down)
    y: Tensor = LoraGatedMLP.apply(  # type: ignore[no-untyped-call]
        x, activation, gate_first, structure_of(projections), tuple(precision), *flatten(projections)
    )
    return y.view(*x.shape[:-1], y.shape[-1])
