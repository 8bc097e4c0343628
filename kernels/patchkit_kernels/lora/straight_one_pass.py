"""The backward of the structure that people train, without dropout, where dt and dB come from one pass over each dy.

As :mod:`.straight_backward` otherwise, or as :mod:`.straight_bf16x3` where rows are bfloat16 and adapters are not.
Whether it runs is said in :mod:`.choices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.bf16x3 import bf16x3, low_rank_product, over_tokens
from patchkit_kernels.lora.choices import chosen, for_a_device
from patchkit_kernels.lora.products import beside
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.straight import Trained, stacked
from patchkit_kernels.lora.straight_backward import dense, each_of
from patchkit_kernels.lora.straight_bf16x3 import base_gradient
from patchkit_kernels.lora.wide_sums import through_factors_a
from patchkit_kernels.ops.casts import cast
from patchkit_kernels.ops.low_rank_backward import low_rank_backward


class OnePassFlow(NamedTuple):
    """What flows back through the projections: dt of all side by side, ``[tokens, sum of ranks]``, and every dB."""

    d_t: Tensor
    d_factors_b: list[Tensor]


def in_one_pass(row: Tensor, kept: tuple[Sequence[Tensor], Sequence[Tensor]]) -> bool:
    """Whether it is chosen for rows like one of the dy, and for these t and masks."""
    greatest = chosen().one_pass_rank
    if not greatest or not for_a_device(row):
        return False
    ts, masks = kept
    return not masks and all(t.shape[1] <= greatest for t in ts)


def input_gradient(
    rows: Sequence[Tensor], given: Trained, ts: Sequence[Tensor], precision: Precision, dtype: torch.dtype | None
) -> tuple[Tensor | None, OnePassFlow]:
    """As :func:`patchkit_kernels.lora.straight_backward.input_gradient`, of rows ``[tokens, out]``; and every dB."""
    up = cast(given.factors_b, precision.lora)
    found = [low_rank_backward(*one) for one in zip(rows, up, ts, given.scalings, strict=True)]
    d_t = beside([d_reduced for d_reduced, _ in found])
    flow = OnePassFlow(d_t, [d_b for _, d_b in found])
    return None if dtype is None else through_a(d_t, rows, given, precision, dtype), flow


def through_a(d_t: Tensor, rows: Sequence[Tensor], given: Trained, precision: Precision, dtype: torch.dtype) -> Tensor:
    """``dx = dt A + sum dy W``, ``[tokens, in]`` in this dtype, from dt of all projections side by side and each dy."""
    down = stacked(given, precision.lora)
    total = low_rank_product(d_t, down) if bf16x3(rows[0], precision) else through_factors_a(d_t, down, dtype)
    return base_gradient(cast(list(rows), precision.base), dense(given.weights, precision.base), dtype, total)


def factor_gradients(flow: OnePassFlow, flat: Tensor, given: Trained, precision: Precision) -> list[Tensor]:
    """As :func:`patchkit_kernels.lora.straight_backward.factor_gradients`, with the dB that are there."""
    (d_t, d_bs), stored = flow, given.factors_b[0].dtype
    whole = over_tokens(d_t, flat) if bf16x3(flat, precision) else torch.mm(d_t.t(), flat.to(d_t.dtype))
    whole = whole.to(stored)
    ranks = [factor.shape[0] for factor in given.factors_a]
    return [*each_of(whole, ranks), *cast(d_bs, stored)]
