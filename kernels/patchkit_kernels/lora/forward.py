"""Several linear projections of one input with their adapters: forward.

The formulas: :mod:`patchkit_kernels.lora.projection`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.bf16x3 import bf16x3
from patchkit_kernels.lora.call import AdapterNeeds, Call, Kept
from patchkit_kernels.lora.low_rank import drop, reduce
from patchkit_kernels.lora.projection import Adapter, Precision, Projection, dense_weight, present, sum_dtype
from patchkit_kernels.lora.stand_in import recalled
from patchkit_kernels.lora.terms import (
    add_dora_dropout_term,
    add_dora_term,
    add_lora_term,
    add_lora_terms_in_pieces,
    are_plain,
)
from patchkit_kernels.ops.dropout import draw_mask, pack_mask


def project(x: Tensor, call: Call, *, remakes: bool) -> tuple[list[Tensor], list[list[Kept]]]:
    """Apply every projection to one input, drawing dropout masks in the order of projections and adapters.

    Args:
        x: ``[..., in]``, of any floating dtype and layout.
        call: the projections and which of their tensors will need a gradient.
        remakes: whether backward will have x and the A's, to make every t again.

    Returns:
        One contiguous ``[tokens, out_i]`` in ``precision.output`` for each projection, and what backward needs of each
        of its adapters besides their tensors.
    """
    projections, needs, precision = call
    adapters = [adapter for projection in projections for adapter in projection.adapters]
    masks = draw_masks(x, adapters, precision)
    flat = x.reshape(-1, x.shape[-1])
    reduced = reduce(flat, adapters, masks, precision)
    rest = iter([Kept(mask, t) for mask, t in zip(masks, reduced, strict=True)])
    outputs, kept = [], []
    for projection, need in zip(projections, needs, strict=True):
        y, made = project_rows(flat, projection, [next(rest) for _ in projection.adapters], precision)
        outputs.append(y)
        kept.append([to_keep(*pair, precision, remakes=remakes) for pair in zip(made, need.adapters, strict=True)])
    return outputs, kept


def project_again(
    x: Tensor, projections: Sequence[Projection], precision: Precision, kept: Sequence[Sequence[Kept]]
) -> list[Tensor]:
    """:func:`project` with what an earlier call kept, in operations that autograd differentiates.

    Where a value was kept, it is that value, and only its derivatives are those of this computation: what backward does
    not read may be a stand-in, or may have changed (see :mod:`patchkit_kernels.lora.stand_in`).

    Args:
        x: as there.
        projections: as there.
        precision: as there.
        kept: what the earlier call kept.
    """
    adapters = [adapter for projection in projections for adapter in projection.adapters]
    masks = [entry.mask for entries in kept for entry in entries]
    flat = x.reshape(-1, x.shape[-1])
    rest = iter(reduce(flat, adapters, masks, precision, differentiable=True))
    outputs = []
    for projection, entries in zip(projections, kept, strict=True):
        made = [Kept(mask, recalled(value, next(rest)), direction) for mask, value, direction in entries]
        outputs.append(project_rows(flat, projection, made, precision, differentiable=True)[0])
    return outputs


def draw_masks(x: Tensor, adapters: Sequence[Adapter], precision: Precision) -> list[Tensor | None]:
    """A packed mask for each adapter with dropout, drawn as PEFT does: for x cast to the adapter's dtype."""
    if not any(adapter.dropout > 0 for adapter in adapters):
        return [None] * len(adapters)
    like = as_drawn(x, precision)
    return [pack_mask(draw_mask(like, adapter.dropout)) if adapter.dropout > 0 else None for adapter in adapters]


def as_drawn(x: Tensor, precision: Precision) -> Tensor:
    """A tensor like x in the dtype that dropout is drawn for. What it holds is of no importance, so nothing is cast."""
    return x.detach() if x.dtype is precision.drawn else torch.empty_like(x, dtype=precision.drawn, requires_grad=False)


def project_rows(
    flat: Tensor, projection: Projection, made: list[Kept], precision: Precision, *, differentiable: bool = False
) -> tuple[Tensor, list[Kept]]:
    """One projection: the base product, into whose buffer every adapter's term is added.

    Args:
        flat: x, ``[tokens, in]``.
        projection: with or without adapters.
        made: mask and t of each adapter, and its direction if an earlier call kept it; a list of ours.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        differentiable: whether to compute in operations that autograd differentiates.

    Returns:
        ``[tokens, out]``, and ``made`` with the direction of every DoRA.
    """
    adapters = projection.adapters
    # DoRA scales the product without the bias: where it comes first, the bias is not added only to be taken off again.
    scales_base = bool(adapters) and adapters[0].factor is not None and adapters[0].dropout == 0
    y, has_bias = _base(flat, projection, precision, with_bias=not scales_base)
    if not adapters:
        return y.to(precision.output), made
    if not differentiable and bf16x3(flat, precision) and are_plain(adapters):
        return add_lora_terms_in_pieces(y.to(precision.output), made, adapters), made
    y = y.to(sum_dtype(projection, precision))
    bias = None if projection.bias is None else projection.bias.to(y.dtype)
    for j, (adapter, entry) in enumerate(zip(adapters, made, strict=True)):
        if adapter.factor is None:
            y = add_lora_term(y, present(entry.reduced), adapter, precision)
            continue
        if entry.mask is None:
            unbiased = y - bias if bias is not None and has_bias else y
            y, direction = add_dora_term(unbiased, bias, adapter, entry, precision)
        else:
            dropped = drop(flat.to(precision.lora), entry.mask, adapter, differentiable=differentiable)
            product = F.linear(dropped, dense_weight(projection).to(precision.lora)).to(y.dtype)
            y, direction = add_dora_dropout_term(y, product, adapter, entry, precision)
        has_bias, made[j] = True, entry._replace(direction=direction)
    return y.to(precision.output), made


def _base(flat: Tensor, projection: Projection, precision: Precision, *, with_bias: bool) -> tuple[Tensor, bool]:
    """x W^T in a buffer of ours, and whether the bias is in it."""
    weight, bias = projection.weight, projection.bias
    if not isinstance(weight, Tensor):
        return weight.linear(flat), True
    added = bias.to(precision.base) if bias is not None and with_bias else None
    return F.linear(flat.to(precision.base), weight.to(precision.base), added), with_bias


def to_keep(made: Kept, needs: AdapterNeeds, precision: Precision, *, remakes: bool) -> Kept:
    """Of what was made of one adapter, what backward reads."""
    mask, reduced, direction = made
    if remakes or not needs.lora_b:
        reduced = None
    if not needs.factor:
        direction = None
    elif direction is not None:
        direction = direction.to(torch.promote_types(precision.output, precision.lora))
    return Kept(mask, reduced, direction)
