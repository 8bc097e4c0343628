"""The structure that people train (:mod:`.straight`), with bfloat16 rows and float32 adapters on tensor cores.

What :mod:`.straight` and :mod:`.straight_backward` compute, in products of pieces (:mod:`.bf16x3`). No copy of x or dy
is made in float32, nor a product as wide as y. With dropout, the elements of x that stay are multiplied with as they
are, and the factor is scaled in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.bf16x3 import (
    left_pieces,
    low_rank_product,
    over_tokens,
    over_tokens_of_rows,
    right_pieces,
    times_beside,
    times_transposed,
)
from patchkit_kernels.lora.choices import chosen
from patchkit_kernels.lora.forward import as_drawn
from patchkit_kernels.lora.projection import Precision, dropout_scale, present
from patchkit_kernels.lora.shapes import as_rows
from patchkit_kernels.lora.straight import Trained, stacked
from patchkit_kernels.lora.straight_backward import dense, each_of
from patchkit_kernels.ops.add_masked import add_masked_
from patchkit_kernels.ops.casts import cast
from patchkit_kernels.ops.dropout import draw_mask, masked, pack_mask
from patchkit_kernels.ops.registration import results_are_held


class PiecesFlow(NamedTuple):
    """What flows back through the projections, and is used again for the gradients of A and B.

    Attributes:
        rows: dy of each, bfloat16 ``[tokens, out]``.
        d_ts: dt of each, float32 ``[tokens, rank]``; without dropout one tensor of all side by side.
    """

    rows: Sequence[Tensor]
    d_ts: Sequence[Tensor]


def project(x: Tensor, given: Trained, precision: Precision) -> tuple[list[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """As :func:`patchkit_kernels.lora.straight.project`."""
    factors_a, dropouts = given.factors_a, given.dropouts
    flat = as_rows(x)
    if dropouts[0]:
        like, ts, masks = as_drawn(x, precision), [], []
        for factor, p in zip(cast(factors_a, torch.float32), dropouts, strict=True):
            mask = pack_mask(draw_mask(like, p))
            ts.append(times_transposed(masked(flat, mask, 1.0), factor, dropout_scale(p)))
            masks.append(mask)
        return _outputs(flat, [left_pieces(t) for t in ts], given, precision), ts, masks
    t = times_transposed(flat, stacked(given, torch.float32))
    ranks = [factor.shape[0] for factor in factors_a]
    lefts = torch.split_with_sizes(left_pieces(t), [3 * rank for rank in ranks], 1)
    return _outputs(flat, lefts, given, precision), torch.split_with_sizes(t, ranks, 1), ()


def outputs_of(flat: Tensor, ts: Sequence[Tensor], given: Trained, precision: Precision) -> list[Tensor]:
    """As :func:`patchkit_kernels.lora.straight.outputs_of`."""
    return _outputs(flat, [left_pieces(t) for t in ts], given, precision)


def _outputs(flat: Tensor, lefts: Sequence[Tensor], given: Trained, precision: Precision) -> list[Tensor]:
    """``y`` of each projection from x ``[tokens, in]`` and the pieces of t of each."""
    _, factors_b, scalings, weights, biases, _, _, _ = given
    base, _, output, _ = precision
    base_x = flat if flat.dtype is base else flat.to(base)
    low_rank_first, in_place, outputs = chosen().low_rank_first and base is output, not results_are_held(), []
    for left, factor, scaling, weight, bias in zip(
        lefts, cast(factors_b, torch.float32), scalings, weights, biases, strict=True
    ):
        right = right_pieces(factor, scaling).t()
        if not isinstance(weight, Tensor):
            y = weight.linear(flat)
        else:
            weight = weight if weight.dtype is base else weight.to(base)
            bias = bias if bias is None or bias.dtype is base else bias.to(base)
            if low_rank_first:
                y = torch.mm(left, right) if bias is None else torch.addmm(bias, left, right)
                outputs.append(y.addmm_(base_x, weight.t()) if in_place else y.addmm(base_x, weight.t()))
                continue
            y = F.linear(base_x, weight, bias)
        y = y if y.dtype is output else y.to(output)
        outputs.append(y.addmm_(left, right) if in_place else y.addmm(left, right))
    return outputs


def input_gradient(
    rows: Sequence[Tensor],
    given: Trained,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: Precision,
    dtype: torch.dtype | None,
) -> tuple[Tensor | None, PiecesFlow]:
    """As :func:`patchkit_kernels.lora.straight_backward.input_gradient`, of rows ``[tokens, out]``."""
    (_, masks), factors_b = kept, cast(given.factors_b, torch.float32)
    parts = [times_beside(*one) for one in zip(rows, factors_b, given.scalings, strict=True)]
    d_ts: Sequence[Tensor] = (_side_by_side(parts),) if not masks else [part.sum(1) for part in parts]
    flow = PiecesFlow(rows, d_ts)
    if dtype is None:
        return None, flow
    total = None if masks else low_rank_product(d_ts[0], stacked(given, torch.float32))
    base_rows, weights = cast(list(rows), precision.base), dense(given.weights, precision.base)
    total = base_gradient(base_rows, weights, dtype, total)
    for d_t, factor, mask, p in zip(d_ts, cast(given.factors_a, torch.float32), masks, given.dropouts, strict=False):
        add_masked_(total, low_rank_product(d_t, factor, dropout_scale(p)), mask, 1.0)
    return total, flow


def base_gradient(
    rows: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype, total: Tensor | None
) -> Tensor:
    """``sum dy W``, ``[tokens, in]`` in this dtype, added to a total of ours if there is one."""
    for dy, weight in zip(rows, weights, strict=True):
        if total is None:
            total = torch.mm(dy, weight).to(dtype)
        elif dy.dtype is dtype:
            total.addmm_(dy, weight)
        else:
            total.add_(torch.mm(dy, weight))  # under autocast each product is rounded, and their sum is not
    return present(total)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """dt of every adapter side by side, ``[tokens, sum of ranks]``, from the products with the pieces of B."""
    if len(parts) == 1:
        return parts[0].sum(1)
    ranks = [part.shape[2] for part in parts]
    whole = parts[0].new_empty((parts[0].shape[0], sum(ranks)))
    for part, piece in zip(parts, torch.split_with_sizes(whole, ranks, 1), strict=True):
        torch.sum(part, 1, out=piece)
    return whole


def factor_gradients(
    flow: PiecesFlow, flat: Tensor, given: Trained, kept: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> list[Tensor]:
    """As :func:`patchkit_kernels.lora.straight_backward.factor_gradients`."""
    (ts, masks), (rows, d_ts), stored = kept, flow, given.factors_b[0].dtype
    d_as: Sequence[Tensor]
    if masks:
        d_as = [
            over_tokens(d_t, masked(flat, mask, 1.0), dropout_scale(p))
            for d_t, mask, p in zip(d_ts, masks, given.dropouts, strict=True)
        ]
    else:
        d_as = each_of(over_tokens(d_ts[0], flat), [t.shape[1] for t in ts])
    d_bs = [over_tokens_of_rows(*one) for one in zip(rows, ts, given.scalings, strict=True)]
    return [*cast(list(d_as), stored), *cast(d_bs, stored)]
