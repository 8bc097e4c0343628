"""The structure that people train, and its products in a straight line.

Every projection has one LoRA adapter, whose A and B are trained; all else is frozen, and nothing of DoRA and no bias of
B takes part. :mod:`patchkit_kernels.lora.forward` and :mod:`patchkit_kernels.lora.backward` compute every structure and
are the reference; for this one their own work takes longer than the products of a small model. With the A's of one
input stacked::

    t  = x A^T                  [tokens, sum of ranks]
    y  = s t B^T + b + x W^T    [tokens, out] of each projection

    dt = s dy B                 dx = dt A + sum dy W
    dA = dt^T x                 dB = s dy^T t

With dropout each adapter reads an input of its own; for it and the gradients: :mod:`.straight_backward`.

Here any number of projections is computed, in lists. What nearly every layer has is computed without them, to the same
bits: one projection in :mod:`.straight_one`, three in :mod:`.straight_three`, MLPs in :mod:`.straight_two` and
:mod:`.straight_gated`. Lists serve what else there is: weights in another form, tensor cores, modes that look on.

t is kept: a hundredth of x, for a product less. On a GPU, where the adapters compute in the base's dtype, their product
is written first, and the product with W is added to it while it is still in registers: one pass over y less. Where they
compute in a wider one, it is added to what W gave, which PEFT rounds too, in the wider dtype, and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.projection import Precision, Projection, QuantizedWeight
from patchkit_kernels.lora.shapes import as_rows
from patchkit_kernels.ops.casts import cast, cast_one
from patchkit_kernels.ops.dropout_once import draws_together, drop_each, drop_together, scale_left
from patchkit_kernels.ops.registration import results_are_held


class Trained(NamedTuple):
    """Projections of one input that are of this structure; each list in their order.

    Attributes:
        factors_a: A, ``[rank, in]``; all A and B are of one dtype.
        factors_b: B, ``[out, rank]``.
        scalings: s.
        weights: W, ``[out, in]``.
        biases: b, ``[out]``, or None.
        dropouts: the probability with which each adapter drops an element of its input; all are zero, or none is.
        dense: whether every W is a tensor.
        stack: the A's as :func:`stacked` gives them, where they are not to be stacked again.
    """

    factors_a: Sequence[Tensor]
    factors_b: Sequence[Tensor]
    scalings: Sequence[float]
    weights: Sequence[Tensor | QuantizedWeight]
    biases: Sequence[Tensor | None]
    dropouts: Sequence[float]
    dense: bool
    stack: Tensor | None = None


def trained(projections: Sequence[Projection]) -> Trained | None:
    """The same of projections, if all of them are of this structure; else None.

    Looked up at each call, so that whatever is frozen or trained in between is seen. None while compiling: a graph has
    no host's work in it.
    """
    if torch.compiler.is_compiling():
        return None
    rows, dense = [], True
    for weight, bias, adapters in projections:
        if len(adapters) != 1 or (bias is not None and bias.requires_grad):
            return None
        if not isinstance(weight, Tensor):
            dense = False
        elif weight.requires_grad:
            return None
        lora_a, lora_b, scaling, lora_bias, magnitude, dropout = adapters[0]
        if lora_bias is not None or magnitude is not None or dropout == 1.0:
            return None
        if not (lora_a.requires_grad and lora_b.requires_grad):
            return None
        rows.append((lora_a, lora_b, scaling, weight, bias, dropout))
        if not (lora_a.dtype is lora_b.dtype is rows[0][0].dtype):
            return None
    if not rows:
        return None
    *columns, dropouts = zip(*rows, strict=True)
    if 0.0 in dropouts and any(dropouts):
        return None
    return tuple.__new__(Trained, (*columns, dropouts, dense, None))


def stacked(given: Trained, dtype: torch.dtype) -> Tensor:
    """The A's on top of each other, ``[sum of ranks, in]``, in the dtype of their products."""
    if given.stack is not None:
        return given.stack
    factors_a = given.factors_a
    return cast_one(factors_a[0] if len(factors_a) == 1 else torch.cat(list(factors_a)), dtype)


def reduced(flat: Tensor, given: Trained) -> Sequence[Tensor]:
    """t of each adapter, ``[tokens, rank]``: views of one product of x ``[tokens, in]`` in x's dtype."""
    t = F.linear(flat, stacked(given, flat.dtype))
    if len(given.factors_a) == 1:
        return (t,)
    return torch.split_with_sizes(t, [factor.shape[0] for factor in given.factors_a], 1)


def project(x: Tensor, given: Trained, precision: Precision) -> tuple[list[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """``y`` of each projection, ``[tokens, out]`` in ``precision.output``, and t of each, ``[tokens, rank]``.

    And the mask of each if dropout is drawn: in their order, as PEFT does, for x cast to the adapter's dtype. They may
    be one after the other in one tensor. Their forms are those of :mod:`~patchkit_kernels.ops.dropout_once`.

    Args:
        x: ``[..., in]``.
        given: the projections.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """
    flat = as_rows(x)
    if given.dense and precision.lora is precision.base:
        flat = cast_one(flat, precision.base)  # once for both
    ts: Sequence[Tensor]
    masks: Sequence[Tensor] = ()
    if given.dropouts[0]:
        ts, masks, _ = reduced_dropped(x, flat, given.factors_a, given.dropouts, precision)
    else:
        ts = reduced(cast_one(flat, precision.lora), given)
    return outputs_of(flat, ts, given, precision), ts, masks


def reduced_dropped(
    x: Tensor, flat: Tensor, factors_a: Sequence[Tensor], dropouts: Sequence[float], precision: Precision
) -> tuple[list[Tensor], list[Tensor], Sequence[Tensor] | None]:
    """t of each adapter, whose dropout is drawn for x, and the mask of each, or one of all.

    And what each has read, ``[tokens, in]``, where the mask is kept unpacked; else None. As backward reads it: but for
    :func:`~patchkit_kernels.ops.dropout_once.scale_left`.

    Args:
        x: ``[..., in]``.
        flat: the same as rows ``[tokens, in]``, perhaps in the dtype of the adapters' products.
        factors_a: A of each.
        dropouts: p of each.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """
    _, lora, _, drawn = precision
    factors_a = cast(factors_a, lora)
    if draws_together(x, dropouts):
        dropped, packed = drop_together(cast_one(flat, lora), dropouts, drawn)
        each = (dropped,) if len(factors_a) == 1 else dropped.unbind()
        scale, again = scale_left(dropouts[0], lora, drawn), each if packed.is_floating_point() else None
        return [_times_a(*pair, scale) for pair in zip(each, factors_a, strict=True)], [packed], again
    ts, masks = [], []
    for factor, (rows, mask) in zip(factors_a, drop_each(x, flat, dropouts, lora, drawn), strict=True):
        ts.append(F.linear(rows, factor))
        masks.append(mask)
    return ts, masks, None


def _times_a(rows: Tensor, factor: Tensor, scale: float) -> Tensor:
    """``scale rows A^T``."""
    if scale == 1.0:
        return F.linear(rows, factor)
    return torch.addmm(_unread(rows.dtype), rows, factor.t(), beta=0, alpha=scale)


@lru_cache(maxsize=8)
def _unread(dtype: torch.dtype) -> Tensor:
    """An addend for beta=0, on a CPU."""
    return torch.zeros((), dtype=dtype, device="cpu")


def outputs_of(flat: Tensor, ts: Sequence[Tensor], given: Trained, precision: Precision) -> list[Tensor]:
    """``y`` of each projection from x ``[tokens, in]`` and t of each: in forward, and again where y is not kept."""
    _, factors_b, scalings, weights, biases, _, _, _ = given
    base, lora, output, _ = precision
    base_x = cast_one(flat, base)
    outputs = []
    low_rank_first = lora is base is output and reads_in_epilogue(flat)
    # Selective checkpointing holds results of operations, and refuses to see them change.
    in_place = not results_are_held()
    for t, factor, scaling, weight, bias in zip(ts, cast(factors_b, lora), scalings, weights, biases, strict=True):
        up = factor.t()
        if not isinstance(weight, Tensor):
            y = weight.linear(flat)
        else:
            if weight.dtype is not base:
                weight = cast_one(weight, base)
            if bias is not None:
                bias = cast_one(bias, base)
            if low_rank_first:
                y = low_rank(t, up, scaling, bias)
                outputs.append(y.addmm_(base_x, weight.t()) if in_place else y.addmm(base_x, weight.t()))
                continue
            y = F.linear(base_x, weight, bias)
        if y.dtype is not output:
            y = cast_one(y, output)
        if lora is output:
            y = y.addmm_(t, up, alpha=scaling) if in_place else y.addmm(t, up, alpha=scaling)
        elif in_place:
            y.add_(torch.mm(t, up), alpha=scaling)
        else:
            y = y.add(torch.mm(t, up), alpha=scaling).to(output)
        outputs.append(y)
    return outputs


def reads_in_epilogue(x: Tensor) -> bool:
    """Whether a product that is added to y reads y while it waits for other things, as GPUs do.

    A CPU has no such gap, and the other order takes fewer calls.
    """
    return not x.is_cpu


def low_rank(t: Tensor, up: Tensor, scaling: float, bias: Tensor | None) -> Tensor:
    """``s t B^T + b``."""
    if bias is not None:
        return torch.addmm(bias, t, up, alpha=scaling)
    return torch.addmm(t.new_empty(()), t, up, beta=0, alpha=scaling)  # beta=0: the addend is not read
