"""Several linear projections of one input with their adapters: forward.

The A's of adapters without dropout are stacked into one product. The formulas: :mod:`patchkit_kernels.lora.projection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.projection import (
    Adapter,
    Kept,
    Key,
    Needs,
    Precision,
    Projection,
    dense_weight,
    dropout_scale,
    keys_of,
    sum_dtype,
)
from patchkit_kernels.lora.stand_in import substitute
from patchkit_kernels.ops.dropout import draw_mask, masked, masked_reference, pack_mask

NOTHING = Kept()


def project(
    x: Tensor, projections: Sequence[Projection], precision: Precision, needs: Sequence[Needs], *, remakes: bool
) -> tuple[list[Tensor], dict[Key, Kept]]:
    """Apply every projection to one input, drawing dropout masks in the order of projections and adapters.

    Args:
        x: ``[..., in]``, of any floating dtype and layout.
        projections: any number, with or without adapters.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        needs: which tensors will need a gradient.
        remakes: whether backward will have x and the A's, to make every t again.

    Returns:
        One contiguous ``[tokens, out_i]`` in ``precision.output`` for each projection, and what backward needs of each
        adapter besides its tensors.
    """
    keys = keys_of(list(projections))
    masks = draw_masks(x, projections, keys, precision)
    flat = x.reshape(-1, x.shape[-1])
    reduced = reduce(flat, projections, keys, masks, precision)
    outputs: list[Tensor] = []
    kept: dict[Key, Kept] = {key: Kept(mask) for key, mask in masks.items()}
    if not remakes:
        for i, j in keys:
            if needs[i].adapters[j].lora_b:
                kept[i, j] = Kept(masks.get((i, j)), reduced[i, j])
    for i, projection in enumerate(projections):
        y, directions = _project(i, flat, projection, reduced, kept, precision)
        outputs.append(y)
        for j, direction in directions.items():
            if needs[i].adapters[j].factor:
                narrow = direction.to(torch.promote_types(precision.output, precision.lora))
                kept[i, j] = kept.get((i, j), NOTHING)._replace(direction=narrow)
    return outputs, kept


def project_again(
    x: Tensor, projections: Sequence[Projection], precision: Precision, kept: Mapping[Key, Kept]
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
    keys = keys_of(list(projections))
    flat = x.reshape(-1, x.shape[-1])
    masks = {key: entry.mask for key, entry in kept.items() if entry.mask is not None}
    reduced = reduce(flat, projections, keys, masks, precision, differentiable=True)
    for key, entry in kept.items():
        if entry.reduced is not None:
            reduced[key] = substitute(entry.reduced, reduced[key])
    return [
        _project(i, flat, projection, reduced, kept, precision, differentiable=True)[0]
        for i, projection in enumerate(projections)
    ]


def draw_masks(
    x: Tensor, projections: Sequence[Projection], keys: Sequence[Key], precision: Precision
) -> dict[Key, Tensor]:
    """A packed mask for each adapter with dropout, drawn as PEFT does: for x cast to the adapter's dtype."""
    masks = {}
    for i, j in keys:
        probability = projections[i].adapters[j].dropout
        if probability > 0:
            masks[i, j] = pack_mask(draw_mask(x.detach().to(precision.drawn), probability))
    return masks


def reduce(
    flat: Tensor,
    projections: Sequence[Projection],
    keys: Sequence[Key],
    masks: Mapping[Key, Tensor],
    precision: Precision,
    *,
    differentiable: bool = False,
) -> dict[Key, Tensor]:
    """t of every adapter in ``keys``, ``[tokens, rank]``: one product for all that read x itself, one for each mask.

    Not for a differentiable one: the gradients of stacked A's would be views of one another's memory.
    """
    if not keys:
        return {}
    lora_x = flat.to(precision.lora)
    reduced: dict[Key, Tensor] = {}
    plain = [key for key in keys if key not in masks]
    for group in [[key] for key in plain] if differentiable else [plain] if plain else []:
        adapters = [projections[i].adapters[j] for i, j in group]
        product = lora_x @ stack_a(adapters, precision).t()
        parts = torch.split(product, [adapter.lora_a.shape[0] for adapter in adapters], 1)
        reduced.update(zip(group, parts, strict=True))
    for i, j in keys:
        if (i, j) in masks:
            adapter = projections[i].adapters[j]
            dropped = drop(lora_x, masks[i, j], adapter, differentiable=differentiable)
            reduced[i, j] = dropped @ adapter.lora_a.to(precision.lora).t()
    return reduced


def stack_a(adapters: Sequence[Adapter], precision: Precision) -> Tensor:
    """The A's on top of each other, ``[sum of ranks, in]``."""
    stacked = [adapter.lora_a.to(precision.lora) for adapter in adapters]
    return stacked[0] if len(stacked) == 1 else torch.cat(stacked)


def drop(flat: Tensor, mask: Tensor, adapter: Adapter, *, differentiable: bool = False) -> Tensor:
    """``d(x)``: flat ``[tokens, in]`` with the dropped elements zero and the others scaled."""
    return (masked_reference if differentiable else masked)(flat, mask, dropout_scale(adapter))


def _project(
    i: int,
    flat: Tensor,
    projection: Projection,
    reduced: Mapping[Key, Tensor],
    kept: Mapping[Key, Kept],
    precision: Precision,
    *,
    differentiable: bool = False,
) -> tuple[Tensor, dict[int, Tensor]]:
    """The i-th projection, and what each g scales; every adapter's part is added into the base product's buffer."""
    first = projection.adapters[0] if projection.adapters else None
    scales_base = first is not None and first.factor is not None and first.dropout == 0
    y, has_bias = _base(flat, projection, precision, with_bias=not scales_base)
    if first is None:
        return y.to(precision.output), {}
    y = y.to(sum_dtype(projection, precision))
    bias = None if projection.bias is None else projection.bias.to(y.dtype)
    directions: dict[int, Tensor] = {}
    for j, adapter in enumerate(projection.adapters):
        t, factor = reduced[i, j], adapter.factor
        if factor is None:
            y = _add_low_rank(y, t, adapter, precision)
            continue
        entry, without = kept.get((i, j), NOTHING), bias
        if entry.mask is None:
            direction = _add_low_rank(y - bias if bias is not None and has_bias else y, t, adapter, precision)
        else:
            dropped = drop(flat.to(precision.lora), entry.mask, adapter, differentiable=differentiable)
            direction = F.linear(dropped, dense_weight(projection).to(precision.lora)).to(y.dtype)
            without = y - direction
            direction = _add_low_rank(direction, t, adapter, precision)
        if differentiable and entry.direction is not None:
            direction = substitute(entry.direction.to(y.dtype), direction)
        y = direction * factor if without is None else torch.addcmul(without, direction, factor)
        has_bias, directions[j] = True, direction
    return y.to(precision.output), directions


def _base(flat: Tensor, projection: Projection, precision: Precision, *, with_bias: bool) -> tuple[Tensor, bool]:
    """x W^T in a buffer of ours, and whether the bias is in it."""
    weight, bias = projection.weight, projection.bias
    if not isinstance(weight, Tensor):
        return weight.linear(flat), True
    added = bias.to(precision.base) if bias is not None and with_bias else None
    return F.linear(flat.to(precision.base), weight.to(precision.base), added), with_bias


def _add_low_rank(y: Tensor, t: Tensor, adapter: Adapter, precision: Precision) -> Tensor:
    """y + s (t B^T + c), in y's own buffer if that may be."""
    in_place, lora_b, scaling = _may_write(), adapter.lora_b.to(precision.lora), adapter.scaling
    if y.dtype == precision.lora:
        y = (y.addmm_ if in_place else y.addmm)(t, lora_b.t(), alpha=scaling)
    else:
        y = (y.add_ if in_place else y.add)(t @ lora_b.t(), alpha=scaling)
    if adapter.bias is not None:
        y = (y.add_ if in_place else y.add)(adapter.bias.to(precision.lora), alpha=scaling)
    return y


def _may_write() -> bool:
    """Whether a product that nobody else holds may be written over.

    Selective checkpointing holds it: its dispatch mode keeps results of operations and refuses to see them change.
    """
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() == 0
