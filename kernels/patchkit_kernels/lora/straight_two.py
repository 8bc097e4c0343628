"""An MLP of two projections of the structure that people train, without the lists of :mod:`.straight`.

It has no gate, or one projection yields gate and up. What it computes and keeps is what :mod:`.straight_mlp` does; the
products are the same, in the same order, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.bare_operations import applier, bare
from patchkit_kernels.lora.differentiable import wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.hidden_state import back_through, functions_of, hidden_dtype, inputs_of
from patchkit_kernels.lora.projection import Precision, Projection, present
from patchkit_kernels.lora.shapes import as_rows, shaped, shaped_as
from patchkit_kernels.lora.straight_mlp import TrainedParts, gradients_in_lists
from patchkit_kernels.lora.straight_one import (
    TrainedOne,
    factor_gradients,
    flown_back,
    in_lists,
    projected,
    trained_one,
    unwatched,
    with_casts,
)
from patchkit_kernels.lora.straight_saving import mask_to_keep, unless_hooked
from patchkit_kernels.ops.activations import Activation
from patchkit_kernels.ops.registration import dispatch_modes


class TrainedTwo(NamedTuple):
    """The MLP.

    Attributes:
        up: what reads x: up alone, or one that yields gate and up.
        down: the projection of the hidden state.
        activation: its name.
        gate_first: see :mod:`patchkit_kernels.lora.hidden_state`.
        precision: of all products.
    """

    up: TrainedOne
    down: TrainedOne
    activation: Activation
    gate_first: bool | None
    precision: Precision


def trained_two(
    x: Tensor,
    inputs: Sequence[Projection],
    down: Projection,
    activation: Activation,
    precision: Precision,
    gate_first: bool | None,
) -> TrainedTwo | None:
    """The MLP of x ``[..., hidden]``, if it is of this structure and nothing else is asked of it; else None."""
    if len(inputs) != 1 or not unwatched(x, precision, inputs[0].weight, down.weight):
        return None
    up, last = trained_one(inputs[0]), trained_one(down)
    if up is None or last is None:
        return None
    return tuple.__new__(TrainedTwo, (up, last, activation, gate_first, precision))


class TrainedMLPOfTwo(torch.autograd.Function):
    """``down(act(up(x)))``, or ``down(act(gate) * up)`` with both from one projection of x."""

    @staticmethod
    def forward(ctx: Any, given: TrainedTwo, x: Tensor, a_up: Tensor, b_up: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``[..., hidden]``; keeps x, what ``up`` yields, t and B of each, A and W of down, and perhaps of ``up``."""
        up, down, *others = ctx.given = given
        precision, x_needed = given.precision, ctx.needs_input_grad[1]
        down = with_casts(down, precision, x)
        if x_needed:
            up = with_casts(up, precision, x)
        given = tuple.__new__(TrainedTwo, (up, down, *others))
        y, between, t_down, mask_down, w_down, of_down, t_up, mask_up, w_up, of_up = bare(
            _computed, x, given, (x_needed, True)
        )
        ctx.beside = given, (unless_hooked(of_up), unless_hooked(of_down))
        rest = (a_up, w_up) if x_needed else ()
        # In the order of lists, which may make all this again for a checkpoint.
        mask_up, mask_down = mask_to_keep(mask_up), mask_to_keep(mask_down)
        ctx.save_for_backward(x, between, t_down, mask_down, b, a, w_down, t_up, mask_up, b_up, *rest)
        return shaped(y, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of every factor."""
        _, x_needed, *needed = ctx.needs_input_grad
        x, between, t_down, mask_down, b_down, a_down, w_down, t_up, mask_up, b_up, *rest = ctx.saved_tensors
        (given, read), ctx.beside = ctx.beside or (ctx.given, (None, None)), None  # freed with the saved tensors
        (a_up, _, w_up, *rest_up), (_, _, _, *rest_down), *others = given
        if x_needed:
            a_up, w_up = rest
        up = tuple.__new__(TrainedOne, (a_up, b_up, w_up, *rest_up))
        down = tuple.__new__(TrainedOne, (a_down, b_down, w_down, *rest_down))
        given = tuple.__new__(TrainedTwo, (up, down, *others))
        kept = between, (t_up, mask_up), (t_down, mask_down)
        if False in needed or dispatch_modes() or wants_ordinary_operations((grad,)):
            return (None, *_in_lists(grad, x, kept, given, (x_needed, *needed)))
        found: tuple[Tensor | None, ...] = bare(_gradients, grad, x, kept, read, given, x_needed)
        return (None, *found)


Kept = tuple[Tensor, tuple[Tensor, "Tensor | None"], tuple[Tensor, "Tensor | None"]]
"""What ``up`` yields, and t and with dropout the mask of each projection."""


def _computed(x: Tensor, given: TrainedTwo, keeps_w: tuple[bool, bool]) -> tuple[Any, ...]:
    """``y`` ``[tokens, hidden]``, what ``up`` yields, and of down and of ``up`` what :func:`projected` says.

    ``keeps_w`` is of ``up`` and of down.
    """
    up, down, activation, gate_first, precision = given
    between, *of_up = projected(x, up, precision, keeps_w[0])
    hidden = functions_of(activation, gate_first).run(*inputs_of((between,), gate_first))
    y, *of_down = projected(hidden, down, precision, keeps_w[1])
    return y, between, *of_down, *of_up


def _gradients(
    grad: Tensor, x: Tensor, kept: Kept, read: Sequence[Tensor | None], given: TrainedTwo, x_needed: bool
) -> tuple[Tensor | None, ...]:
    """Where every gradient is wanted, but perhaps that of x."""
    up, down, activation, gate_first, precision = given
    (between, (t_up, mask_up), (t_down, mask_down)), (read_up, read_down) = kept, read
    d_hidden, flow = flown_back(as_rows(grad), t_down, mask_down, down, precision, precision.output)
    dtype = None if read_down is not None else hidden_dtype(precision, dropped=mask_down is not None)
    functions = functions_of(activation, gate_first)
    (row,), hidden = back_through(functions, present(d_hidden), (between,), gate_first, hidden_dtype=dtype)
    of_down = factor_gradients(flow, hidden, (t_down, mask_down, read_down), down, precision)
    del hidden, flow, d_hidden
    d_x, flow = flown_back(row, t_up, mask_up, up, precision, x.dtype if x_needed else None)
    of_up = factor_gradients(flow, as_rows(x), (t_up, mask_up, read_up), up, precision)
    return None if d_x is None else shaped_as(d_x, x), *of_up, *of_down


def _in_lists(grad: Tensor, x: Tensor, kept: Kept, given: TrainedTwo, needed: Sequence[bool]) -> list[Tensor | None]:
    """Where not every gradient is wanted, they are to be differentiated, or something looks at operations."""
    up, down, activation, gate_first, precision = given
    between, *made = kept
    parts = TrainedParts(in_lists((up,)), in_lists((down,)), activation, gate_first, precision)
    of_up, of_down = [((t,), () if mask is None else (mask,)) for t, mask in made]
    return gradients_in_lists(grad, x, (between,), (of_up, of_down), parts, needed)


_apply = applier(TrainedMLPOfTwo)


def apply_trained_two(given: TrainedTwo, x: Tensor) -> Tensor:
    """:class:`TrainedMLPOfTwo` of x ``[..., hidden]``."""
    up, down, *_ = given
    if not torch.is_grad_enabled():  # nothing is kept
        return shaped(bare(_computed, x, given, (False, False))[0], x)
    y: Tensor = _apply(given, x, up.lora_a, up.lora_b, down.lora_a, down.lora_b)
    return y
