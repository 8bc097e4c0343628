"""A gated MLP of the structure that people train, whose rank-r products are made inside the activation's kernels.

As :mod:`.straight_mlp` otherwise, which keeps the same tensors: what an adapter adds to gate and up, t of down and, in
backward, all that reads gate, up, their gradients and hidden, come from :mod:`patchkit_kernels.ops.gated_low_rank` and
:mod:`patchkit_kernels.ops.gated_low_rank_backward`. Whether it runs is said in :mod:`.choices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.bf16x3 import bf16x3, over_tokens_of_rows, times, times_transposed
from patchkit_kernels.lora.choices import chosen, for_a_device
from patchkit_kernels.lora.hidden_state import inputs_of
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.shapes import as_rows, shaped_as
from patchkit_kernels.lora.straight import Trained, reduced, stacked
from patchkit_kernels.lora.straight_arithmetic import outputs_of
from patchkit_kernels.lora.straight_backward import dense
from patchkit_kernels.lora.straight_one_pass import OnePassFlow, factor_gradients, in_one_pass, through_a
from patchkit_kernels.ops.casts import cast, cast_one
from patchkit_kernels.ops.gated_low_rank import gated_low_rank
from patchkit_kernels.ops.gated_low_rank_backward import FLOAT32_RANK, gated_low_rank_backward
from patchkit_kernels.ops.gated_low_rank_operands import MAX_RANK
from patchkit_kernels.ops.low_rank_backward import low_rank_backward
from patchkit_kernels.ops.registration import results_are_held

if TYPE_CHECKING:
    from patchkit_kernels.lora.straight_mlp import TrainedParts


def in_activation(row: Tensor, parts: TrainedParts) -> bool:
    """Whether it is chosen for rows like x, and for these projections."""
    greatest = chosen().in_activation_rank
    if not greatest or not for_a_device(row):
        return False
    into, down, _, _, precision, _ = parts
    if len(into.scalings) != 2 or into.dropouts[0] or down.dropouts[0] or not (into.dense and down.dense):
        return False
    greatest = min(greatest, FLOAT32_RANK if precision.output is torch.float32 else MAX_RANK)
    return precision.base is precision.output and all(
        factor.shape[1] <= greatest for factor in (*into.factors_b, *down.factors_b)
    )


def computed(x: Tensor, parts: TrainedParts) -> tuple[Any, ...]:
    """As ``straight_mlp._computed``: what the projections of x yield, t of theirs and of down's, and y."""
    into, down, activation, gate_first, precision, _ = parts
    base, lora, _, _ = precision
    flat = as_rows(x)
    base_x = cast_one(flat, base)
    ts = _reduced(base_x if lora is base else flat, into, precision)
    projected = [
        F.linear(base_x, weight, None if bias is None else cast_one(bias, base))
        for weight, bias in zip(dense(into.weights, base), into.biases, strict=True)
    ]
    if results_are_held():  # selective checkpointing holds them, and refuses to see them change
        projected = [y.clone() for y in projected]
    gate, up = inputs_of(projected, gate_first)
    factors = [*_ordered(cast(into.factors_b, lora), gate_first), cast_one(down.factors_a[0], lora)]
    scales = list(_ordered(into.scalings, gate_first))
    hidden, t_down = gated_low_rank(gate, up, list(_ordered(ts, gate_first)), factors, scales, activation)
    (y,) = outputs_of(hidden, [t_down], down, precision)
    return projected, (ts, ()), ([t_down], ()), y


def gradients(
    grad: Tensor, x: Tensor, projected: Sequence[Tensor], kept: tuple[Any, Any], parts: TrainedParts, x_needed: bool
) -> list[Tensor | None]:
    """As ``straight_mlp._gradients``."""
    into, down, activation, gate_first, precision, _ = parts
    (ts, _), kept_down = kept
    lora, stored = precision.lora, down.factors_b[0].dtype
    dy, (gate, up) = as_rows(grad), inputs_of(projected, gate_first)
    d_t_down, d_b_down = _of_down(dy, down, kept_down, precision)
    (weight,) = dense(down.weights, precision.base)
    d_gate = torch.mm(cast_one(dy, precision.base), weight)  # without the adapter, and before the activation, so far
    found = gated_low_rank_backward(
        d_gate,
        gate,
        up,
        [*_ordered(ts, gate_first), d_t_down],
        [*_ordered(cast(into.factors_b, lora), gate_first), cast_one(down.factors_a[0], lora)],
        list(_ordered(into.scalings, gate_first)),
        activation,
    )
    rows, gate_then_up = [d_gate, found.d_up], into
    if not gate_first:
        gate_then_up = Trained._make([*(field[::-1] for field in into[:-2]), into.dense, None])
    d_x = None
    if x_needed:
        d_x = through_a(found.d_reduced, rows, gate_then_up, precision, x.dtype)
    flow = OnePassFlow(found.d_reduced, [found.d_gate_factor, found.d_up_factor])
    first_a, second_a, first_b, second_b = factor_gradients(flow, as_rows(x), gate_then_up, precision)
    of_into = [*_ordered([first_a, second_a], gate_first), *_ordered([first_b, second_b], gate_first)]
    of_down = [cast_one(found.d_down_factor, stored), cast_one(d_b_down, stored)]
    return [None if d_x is None else shaped_as(d_x, x), *of_into, *of_down]


def _ordered(pair: Any, gate_first: bool | None) -> Any:
    """That of gate, then that of up, from those in the order of the projections; and the other way round."""
    return pair if gate_first else pair[::-1]


def _reduced(flat: Tensor, into: Trained, precision: Precision) -> Sequence[Tensor]:
    """t of each projection of x, ``[tokens, rank]``."""
    if not bf16x3(flat, precision):
        return reduced(cast_one(flat, precision.lora), into)
    t = times_transposed(flat, stacked(into, torch.float32))
    return torch.split_with_sizes(t, [factor.shape[0] for factor in into.factors_a], 1)


def _of_down(
    dy: Tensor, down: Trained, kept: tuple[Sequence[Tensor], Sequence[Tensor]], precision: Precision
) -> tuple[Tensor, Tensor]:
    """dt of down, ``s dy B``, and its dB, ``s dy^T t``."""
    (t,), (scale,), (factor,) = kept[0], down.scalings, cast(down.factors_b, precision.lora)
    if in_one_pass(dy, kept):
        return low_rank_backward(dy, factor, t, scale)
    if bf16x3(dy, precision):
        return times(dy, factor, scale), over_tokens_of_rows(dy, t, scale)
    rows = cast_one(dy, precision.lora)
    d_t = torch.addmm(t, rows, factor, beta=0, alpha=scale)  # beta=0: the addend is not read
    return d_t, torch.addmm(factor, rows.t(), t, beta=0, alpha=scale)
