"""Several linear projections of one input with their adapters: forward.

The A's of adapters without dropout are stacked into one product. The formulas: :mod:`patchkit_kernels.projection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.dora_norm import dora_weight_norm
from patchkit_kernels.dropout import draw_mask, masked, masked_reference, pack_mask
from patchkit_kernels.projection import (
    Adapter,
    Kept,
    Key,
    Needs,
    Precision,
    Projection,
    dense_weight,
    dropout_scale,
    keys_of,
)


def project(
    x: Tensor, projections: Sequence[Projection], precision: Precision, needs: Sequence[Needs]
) -> tuple[list[Tensor], dict[Key, Kept]]:
    """Apply every projection to one input, drawing dropout masks in the order of projections and adapters.

    Args:
        x: ``[..., in]``, of any floating dtype and layout.
        projections: any number, with or without adapters.
        precision: see :class:`~patchkit_kernels.projection.Precision`.
        needs: which tensors will need a gradient.

    Returns:
        One contiguous ``[tokens, out_i]`` in ``precision.output`` for each projection, and what backward needs of each
        adapter that has dropout or a magnitude.
    """
    keys = keys_of(list(projections))
    masks = draw_masks(x, projections, keys, precision)
    flat = x.reshape(-1, x.shape[-1])
    reduced = reduce(flat, projections, keys, masks, precision)
    outputs: list[Tensor] = []
    kept: dict[Key, Kept] = {key: Kept(mask) for key, mask in masks.items()}
    for i, projection in enumerate(projections):
        known = {j: Kept(masks.get((i, j))) for j, adapter in enumerate(projection.adapters) if _is_kept(adapter)}
        y, found = _project(
            flat, projection, [reduced[i, j] for j in range(len(projection.adapters))], known, precision
        )
        outputs.append(y)
        for j, entry in found.items():
            trained = needs[i].adapters[j].magnitude
            kept[i, j] = entry if trained else entry._replace(direction=None)
    return outputs, kept


def project_again(
    x: Tensor, projections: Sequence[Projection], precision: Precision, kept: Mapping[Key, Kept]
) -> list[Tensor]:
    """:func:`project` with the masks and norms of an earlier call, in operations that autograd differentiates.

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
    outputs = []
    for i, projection in enumerate(projections):
        parts = [reduced[i, j] for j in range(len(projection.adapters))]
        known = {j: kept[i, j] for j, adapter in enumerate(projection.adapters) if _is_kept(adapter)}
        outputs.append(_project(flat, projection, parts, known, precision, differentiable=True)[0])
    return outputs


def _is_kept(adapter: Adapter) -> bool:
    return adapter.magnitude is not None or adapter.dropout > 0


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
    """t of every adapter in ``keys``, ``[tokens, rank]``: one product for all that read x itself, one for each mask."""
    if not keys:
        return {}
    lora_x = flat.to(precision.lora)
    reduced: dict[Key, Tensor] = {}
    plain = [key for key in keys if key not in masks]
    if plain:
        adapters = [projections[i].adapters[j] for i, j in plain]
        product = lora_x @ stack_a(adapters, precision).t()
        parts = torch.split(product, [adapter.lora_a.shape[0] for adapter in adapters], 1)
        reduced.update(zip(plain, parts, strict=True))
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


def sum_dtype(projection: Projection, precision: Precision) -> torch.dtype:
    """The dtype in which the parts of one projection are added up."""
    wide = torch.promote_types(precision.output, precision.lora)
    if any(adapter.magnitude is not None for adapter in projection.adapters):
        # PEFT's DoRA adds small corrections to a product that is already rounded. Scaling the sum itself must not
        # round it once more.
        wide = torch.promote_types(wide, torch.float32)
    return wide


def _project(
    flat: Tensor,
    projection: Projection,
    reduced: Sequence[Tensor],
    known: Mapping[int, Kept],
    precision: Precision,
    *,
    differentiable: bool = False,
) -> tuple[Tensor, dict[int, Kept]]:
    """One projection; every adapter's part is added into the base product's buffer."""
    first = projection.adapters[0] if projection.adapters else None
    scales_base = first is not None and first.magnitude is not None and first.dropout == 0
    y, has_bias = _base(flat, projection, precision, with_bias=not scales_base)
    if first is None:
        return y.to(precision.output), {}
    y = y.to(sum_dtype(projection, precision))
    bias = None if projection.bias is None else projection.bias.to(y.dtype)
    found: dict[int, Kept] = {}
    for j, (adapter, t) in enumerate(zip(projection.adapters, reduced, strict=True)):
        if adapter.magnitude is None:
            y = _add_low_rank(y, t, adapter, precision)
            continue
        entry = known[j]
        norm = _norm(projection, adapter, entry)
        factor = dora_factor(adapter, norm, y.dtype)
        if entry.mask is None:
            direction = _add_low_rank(y - bias if bias is not None and has_bias else y, t, adapter, precision)
            y = direction * factor if bias is None else torch.addcmul(bias, direction, factor)
        else:
            dropped = drop(flat.to(precision.lora), entry.mask, adapter, differentiable=differentiable)
            direction = F.linear(dropped, dense_weight(projection).to(precision.lora)).to(y.dtype)
            without = y - direction
            direction = _add_low_rank(direction, t, adapter, precision)
            y = torch.addcmul(without, direction, factor)
        has_bias = True
        kept_dtype = torch.promote_types(precision.output, precision.lora)
        found[j] = Kept(entry.mask, norm, direction.to(kept_dtype))
    return y.to(precision.output), found


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


def _norm(projection: Projection, adapter: Adapter, entry: Kept) -> Tensor:
    if entry.norm is not None:
        return entry.norm
    return dora_weight_norm(dense_weight(projection), adapter.lora_a, adapter.lora_b, adapter.scaling, adapter.bias)


def dora_factor(adapter: Adapter, norm: Tensor, dtype: torch.dtype) -> Tensor:
    """g = m / norm, ``[out]``."""
    assert adapter.magnitude is not None  # narrows the type; every caller has looked
    return adapter.magnitude.to(dtype) / norm.to(dtype)
