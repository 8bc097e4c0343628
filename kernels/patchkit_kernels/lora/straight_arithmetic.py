"""In which arithmetic the structure that people train is computed: :mod:`.straight`, or :mod:`.straight_bf16x3`.

Asked once for all projections of one input, forward and backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.lora import straight, straight_backward, straight_bf16x3, straight_one_pass
from patchkit_kernels.lora.bf16x3 import bf16x3
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.shapes import as_rows
from patchkit_kernels.lora.straight import Trained
from patchkit_kernels.lora.straight_backward import TrainedFlow
from patchkit_kernels.lora.straight_bf16x3 import PiecesFlow
from patchkit_kernels.lora.straight_one_pass import OnePassFlow, in_one_pass
from patchkit_kernels.lora.straight_saving import apart

Flow = TrainedFlow | PiecesFlow | OnePassFlow
"""What the first half of the backward hands to the second; its type says which arithmetic it is."""


def project(x: Tensor, given: Trained, precision: Precision) -> tuple[list[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """See :func:`patchkit_kernels.lora.straight.project`."""
    if bf16x3(x, precision):
        return straight_bf16x3.project(x, given, precision)
    return straight.project(x, given, precision)


def outputs_of(flat: Tensor, ts: Sequence[Tensor], given: Trained, precision: Precision) -> list[Tensor]:
    """See :func:`patchkit_kernels.lora.straight.outputs_of`."""
    if bf16x3(flat, precision):
        return straight_bf16x3.outputs_of(flat, ts, given, precision)
    return straight.outputs_of(flat, ts, given, precision)


def input_gradient(
    grads: Sequence[Tensor],
    given: Trained,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: Precision,
    dtype: torch.dtype | None,
) -> tuple[Tensor | None, Flow]:
    """See :func:`patchkit_kernels.lora.straight_backward.input_gradient`."""
    if in_one_pass(grads[0], kept):
        rows = [as_rows(grad) for grad in grads]
        return straight_one_pass.input_gradient(rows, given, kept[0], precision, dtype)
    if bf16x3(grads[0], precision):
        rows, each = [as_rows(grad) for grad in grads], (kept[0], apart(kept[1], len(kept[0])))
        return straight_bf16x3.input_gradient(rows, given, each, precision, dtype)
    return straight_backward.input_gradient(grads, given, kept, precision, dtype)


def factor_gradients(
    flow: Flow,
    flat: Tensor,
    given: Trained,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    precision: Precision,
) -> list[Tensor]:
    """See :func:`patchkit_kernels.lora.straight_backward.factor_gradients`."""
    if isinstance(flow, OnePassFlow):
        return straight_one_pass.factor_gradients(flow, flat, given, precision)
    if isinstance(flow, PiecesFlow):
        return straight_bf16x3.factor_gradients(flow, flat, given, (kept[0], apart(kept[1], len(kept[0]))))
    return straight_backward.factor_gradients(flow, flat, given, kept, precision)
