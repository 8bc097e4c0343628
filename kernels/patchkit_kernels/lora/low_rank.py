"""The low-rank products of adapters: t, and the gradients of what l is made of::

    t  = d(x) A^T            [tokens, rank], d being dropout or nothing
    l  = s (t B^T + c)       [tokens, out], made where it is added, in patchkit_kernels.lora.terms

    dt = s dl B              [tokens, rank]
    dA = dt^T d(x)           dB = s dl^T t           dc = s sum(dl)

The A's of adapters that read x itself are stacked: one product gives every t, and one every dA. Each gradient owns its
memory, all of it: an optimizer or a checkpoint may keep one without the others. Where x and dl are bfloat16 and A and B
are not, products may be made as :mod:`patchkit_kernels.lora.bf16x3` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.lora.bf16x3 import bf16x3, over_tokens, over_tokens_of_rows, times, times_transposed
from patchkit_kernels.lora.call import AdapterFlow
from patchkit_kernels.lora.products import beside, scaled_product
from patchkit_kernels.lora.projection import Adapter, Precision, dropout_scale, present
from patchkit_kernels.ops.dropout import masked, masked_reference


def reduce(
    flat: Tensor,
    adapters: Sequence[Adapter],
    masks: Sequence[Tensor | None],
    precision: Precision,
    *,
    differentiable: bool = False,
) -> list[Tensor]:
    """``t = d(x) A^T`` of every adapter, ``[tokens, rank]``: one product for all that read x itself, one for each mask.

    Not for a differentiable one: the gradients of stacked A's would be views of one another's memory.

    Args:
        flat: x, ``[tokens, in]``.
        adapters: of any projections of x.
        masks: of each, packed; None where nothing is dropped.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        differentiable: whether to compute in operations that autograd differentiates.
    """
    if not adapters:
        return []
    in_pieces = not differentiable and bf16x3(flat, precision)
    lora_x = flat if in_pieces else flat.to(precision.lora)
    plain = [adapter for adapter, mask in zip(adapters, masks, strict=True) if mask is None]
    reduced: list[Tensor] = []
    for group in [[adapter] for adapter in plain] if differentiable else [plain] if plain else []:
        stack = stack_a(group, precision)
        product = times_transposed(lora_x, stack) if in_pieces else lora_x @ stack.t()
        reduced += torch.split_with_sizes(product, [adapter.lora_a.shape[0] for adapter in group], 1)
    rest, found = iter(reduced), []
    for adapter, mask in zip(adapters, masks, strict=True):
        lora_a = adapter.lora_a.to(precision.lora)
        if mask is None:
            found.append(next(rest))
        elif in_pieces:
            found.append(times_transposed(masked(flat, mask, 1.0), lora_a, dropout_scale(adapter.dropout)))
        else:
            found.append(drop(lora_x, mask, adapter, differentiable=differentiable) @ lora_a.t())
    return found


def stack_a(adapters: Sequence[Adapter], precision: Precision) -> Tensor:
    """The A's on top of each other, ``[sum of ranks, in]``."""
    stacked = [adapter.lora_a.to(precision.lora) for adapter in adapters]
    return stacked[0] if len(stacked) == 1 else torch.cat(stacked)


def drop(flat: Tensor, mask: Tensor, adapter: Adapter, *, differentiable: bool = False) -> Tensor:
    """``d(x)``: flat ``[tokens, in]`` with the dropped elements zero and the others scaled."""
    return (masked_reference if differentiable else masked)(flat, mask, dropout_scale(adapter.dropout))


def d_reduced(d_low_rank: Tensor, adapter: Adapter, precision: Precision) -> Tensor:
    """``dt = s dl B``, ``[tokens, rank]``."""
    if bf16x3(d_low_rank, precision):
        return times(d_low_rank, adapter.lora_b.to(precision.lora), adapter.scaling)
    return scaled_product(d_low_rank.to(precision.lora), adapter.lora_b, adapter.scaling)


def d_lora_a(
    adapters: Sequence[AdapterFlow], flat: Tensor | None, stacked: Tensor | None, precision: Precision
) -> list[Tensor | None]:
    """``dA = dt^T d(x)`` of each adapter that needs it, in one product for those without dropout.

    Args:
        adapters: with dt where A needs a gradient.
        flat: x, ``[tokens, in]``; read if any A needs a gradient.
        stacked: every dt of those without dropout side by side, whether their A needs a gradient or not.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """
    wanted = [flow for flow in adapters if flow.needs.lora_a]
    if not wanted:
        return [None] * len(adapters)
    in_pieces = bf16x3(present(flat), precision)
    lora_x = present(flat) if in_pieces else present(flat).to(precision.lora)
    plain = [present(flow.reduced) for flow in wanted if not flow.adapter.dropout]
    parts: Sequence[Tensor] = ()
    if plain:
        complete = stacked is not None and stacked.shape[1] == sum(t.shape[1] for t in plain)
        chosen = present(stacked) if complete else beside(plain)
        product = over_tokens(chosen, lora_x) if in_pieces else chosen.t() @ lora_x
        parts = torch.split_with_sizes(product, [t.shape[1] for t in plain])
    rest, shared = iter(parts), len(plain) > 1  # parts of one product would share its memory
    found: list[Tensor | None] = []
    for adapter, needs, kept, _, reduced in adapters:
        if not needs.lora_a:
            found.append(None)
        elif adapter.dropout:
            found.append(dropped_d_lora_a(present(reduced), lora_x, kept.mask, adapter).to(adapter.lora_a.dtype))
        else:
            found.append(next(rest).to(adapter.lora_a.dtype, copy=shared))
    return found


def dropped_d_lora_a(reduced: Tensor, lora_x: Tensor, mask: Tensor | None, adapter: Adapter) -> Tensor:
    """``dA = dt^T d(x)`` of one adapter, ``[rank, in]`` in dt's dtype.

    Args:
        reduced: dt, ``[tokens, rank]``.
        lora_x: x, ``[tokens, in]``, in dt's dtype, or in bfloat16 for a product in pieces.
        mask: of dropout, packed; None if nothing is dropped.
        adapter: with the probability.
    """
    if lora_x.dtype == reduced.dtype:
        return reduced.t() @ (lora_x if mask is None else drop(lora_x, mask, adapter))
    if mask is None:
        return over_tokens(reduced, lora_x)
    return over_tokens(reduced, masked(lora_x, mask, 1.0), dropout_scale(adapter.dropout))


def one_d_lora_b(d_low_rank: Tensor, t: Tensor, adapter: Adapter, precision: Precision) -> Tensor:
    """``dB = s dl^T t`` of one adapter, ``[out, rank]`` in the dtype of its products."""
    if bf16x3(d_low_rank, precision):
        return over_tokens_of_rows(d_low_rank, t, adapter.scaling)
    return scaled_product(d_low_rank.to(precision.lora).t(), t, adapter.scaling)


def d_lora_b(adapters: Sequence[AdapterFlow], flat: Tensor | None, precision: Precision) -> list[Tensor | None]:
    """``dB = s dl^T t`` of each adapter that needs it, with t made again where it was not kept.

    Args:
        adapters: what flows back through each.
        flat: x, ``[tokens, in]``; read if any t has to be made again.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """
    missing = [flow for flow in adapters if flow.needs.lora_b and flow.kept.reduced is None]
    made: list[Tensor] = []
    if missing:
        masks = [flow.kept.mask for flow in missing]
        made = reduce(present(flat), [flow.adapter for flow in missing], masks, precision)
    rest = iter(made)
    found: list[Tensor | None] = []
    for adapter, needs, kept, term, _ in adapters:
        if not needs.lora_b:
            found.append(None)
            continue
        t = next(rest) if kept.reduced is None else kept.reduced
        found.append(one_d_lora_b(term.low_rank, t, adapter, precision).to(adapter.lora_b.dtype))
    return found


def d_lora_bias(d_low_rank: Tensor, adapter: Adapter) -> Tensor:
    """``dc = s sum(dl)`` over tokens, ``[out]``, rounded once."""
    total = d_low_rank.sum(0, dtype=torch.promote_types(d_low_rank.dtype, torch.float32))
    return total.mul_(adapter.scaling).to(present(adapter.bias).dtype)
