"""The gated MLP with LoRA adapters as one autograd function.

    gate, up = projections of x                      [tokens, intermediate] each
    y = down(act(gate) * up)                         [tokens, hidden]

For backward it keeps x, gate and up; act(gate) * up is computed again (as in Liger-Kernel's gated MLPs). One projection
that yields gate and up together is supported by splitting its output in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.activations import ACTIVATIONS, Activation
from patchkit_kernels.arguments import flatten, gather_grads, needs_of, unflatten
from patchkit_kernels.differentiable import differentiable_backward, wants_graph
from patchkit_kernels.projection import (
    Grads,
    Needs,
    Precision,
    Projection,
    input_backward,
    parameter_backward,
    project,
)


class LoraGatedMLP(torch.autograd.Function):
    """The last projection is down; the others read x: gate and up, or one that yields both."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activation: Activation,
        gate_first: bool,
        scalings: tuple[float, ...],
        precision: tuple[torch.dtype, torch.dtype],
        *tensors: Any,
    ) -> Tensor:
        """``[tokens, hidden]``; saves x, what the first projections yield, and the parameters."""
        ctx.activation, ctx.gate_first, ctx.scalings, ctx.precision = activation, gate_first, scalings, precision
        ctx.set_materialize_grads(False)
        *inputs, down = unflatten(tensors, scalings)
        projected = project(x, inputs, Precision(*precision))
        gate, up = split_gate_up(projected, gate_first)
        hidden = ACTIVATIONS[activation].forward(gate, up)
        (y,) = project(hidden, [down], Precision(*precision))
        ctx.save_for_backward(x, *projected, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        inputs_count = len(ctx.scalings) - 1
        x, *saved = ctx.saved_tensors
        projected, tensors = saved[:inputs_count], saved[inputs_count:]
        precision, needed = Precision(*ctx.precision), ctx.needs_input_grad
        nothing = (None, None, None, None)
        if grad is None:
            return (None, *nothing, *[None] * len(tensors))
        if wants_graph():

            def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
                return [_composed(x, ctx.activation, ctx.gate_first, unflatten(tensors, ctx.scalings), precision)]

            d_x, *rest = differentiable_backward(again, (x, *tensors), (needed[0], *needed[5:]), [grad])
            return (d_x, *nothing, *rest)
        *inputs, down = unflatten(tensors, ctx.scalings)
        *input_needs, down_needs = needs_of(needed[5:])
        gate, up = split_gate_up(projected, ctx.gate_first)
        flows_back = needed[0] or any(any(needs) for needs in input_needs)
        flow = input_backward([grad], [down], precision, [down_needs], precision.base if flows_back else None)
        hidden, halves = _through_activation(ctx.activation, flow.x, gate, up, down_needs)
        down_grads = parameter_backward(flow, [grad], hidden, [down], precision, [down_needs])
        if halves is None:
            return (None, *nothing, *gather_grads([*[Grads()] * inputs_count, *down_grads]))
        del hidden, flow
        joined = _join_gate_up(halves, inputs_count, ctx.gate_first)
        flow = input_backward(joined, inputs, precision, input_needs, x.dtype if needed[0] else None)
        input_grads = parameter_backward(flow, joined, x, inputs, precision, input_needs)
        return (flow.x, *nothing, *gather_grads([*input_grads, *down_grads]))


def _through_activation(
    activation: Activation, d_hidden: Tensor | None, gate: Tensor, up: Tensor, down_needs: Needs
) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
    """The hidden state again, if W, A or B of down needs it, and the gradients of gate and up, if d_hidden is given.

    Both at once read gate and up once. d_hidden is a buffer of ours that nothing else holds: it is written over.
    """
    functions = ACTIVATIONS[activation]
    reads_hidden = down_needs.weight or down_needs.lora_a or down_needs.lora_b
    if d_hidden is None:
        return functions.forward(gate, up) if reads_hidden else None, None
    if not reads_hidden:
        return None, functions.backward(d_hidden, gate, up)
    d_up, hidden = functions.backward_recompute(d_hidden, gate, up)
    return hidden, (d_hidden, d_up)


def split_gate_up(projected: Sequence[Tensor], gate_first: bool) -> tuple[Tensor, Tensor]:
    """Gate and up, each ``[tokens, intermediate]``: given apart, or as two halves (views) of one tensor."""
    if len(projected) == 2:
        return projected[0], projected[1]
    first, second = projected[0].chunk(2, -1)
    return (first, second) if gate_first else (second, first)


def _join_gate_up(halves: tuple[Tensor, Tensor], count: int, gate_first: bool) -> list[Tensor]:
    if count == 2:
        return list(halves)
    return [torch.cat(halves if gate_first else halves[::-1], -1)]


def _composed(
    x: Tensor, activation: Activation, gate_first: bool, projections: Sequence[Projection], precision: Precision
) -> Tensor:
    """The same value by differentiable operations alone."""
    *inputs, down = projections
    gate, up = split_gate_up(project(x, inputs, precision), gate_first)
    return project(ACTIVATIONS[activation].reference(gate, up), [down], precision)[0]


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
        inputs: the gate and the up projection, or one that yields both, side by side in its last dimension.
        down: the down projection.
        activation: name of the activation of the gate.
        precision: see :class:`~patchkit_kernels.projection.Precision`.
        gate_first: for one joint projection: whether its first half is the gate.

    Returns:
        ``[..., hidden]`` in ``precision.base``.
    """
    projections = (*inputs, down)
    y: Tensor = LoraGatedMLP.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]),
        activation,
        gate_first,
        tuple(p.scaling for p in projections),
        tuple(precision),
        *flatten(projections),
    )
    return y.view(*x.shape[:-1], y.shape[-1])
