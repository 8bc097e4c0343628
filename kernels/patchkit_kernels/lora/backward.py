"""Several linear projections of one input with their adapters: gradients.

With dy given, and going through the adapters from the last to the first (e, dl: gradients of r and l)::

    LoRA   dl = e                                    e unchanged
    DoRA   dl = g e,  dg = sum(e * direction)        e <- g e; with dropout e stays, and d(x) W^T gets (g - 1) e
    dt = s dl B        dA = dt^T d(x)        dB = s dl^T t        dc = s sum(dl)
    dx = e W + sum dt A                      (through the masks where there is dropout)
    dW = e^T x         db = sum(dy)

Where x and A are kept, t is not, but computed again where a dB needs it: that costs one product with the stacked A's.
dx needs no x, so that a caller who computes x again can do it afterwards. Every gradient owns its memory, all of it: an
optimizer or a checkpoint may keep one without the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.forward import drop, reduce, stack_a
from patchkit_kernels.lora.projection import (
    AdapterGrads,
    Grads,
    Kept,
    Key,
    Needs,
    Precision,
    Projection,
    dense_weight,
    dropout_scale,
    sum_dtype,
)
from patchkit_kernels.ops.dropout import masked_


class Flow(NamedTuple):
    """What flows back through projections, and what is used again for the gradients of their tensors.

    Attributes:
        x: dx ``[tokens, in]``, or None if it is not needed.
        base: e of each projection that takes part, ``[tokens, out_i]``.
        low_rank: dl of each adapter of these, ``[tokens, out_i]``.
        dropped: (g - 1) e of each DoRA adapter with dropout, the gradient of ``d(x) W^T``.
        reduced: dt of each adapter that needs it, ``[tokens, rank]``.
        stacked: those of adapters without dropout side by side, ``[tokens, sum of ranks]``; None if there is none.
        factor: dg of each adapter that needs it, ``[out_i]``.
    """

    x: Tensor | None
    base: dict[int, Tensor]
    low_rank: dict[Key, Tensor]
    dropped: dict[Key, Tensor]
    reduced: dict[Key, Tensor]
    stacked: Tensor | None
    factor: dict[Key, Tensor]


def input_backward(
    grads: Sequence[Tensor | None],
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
    kept: Mapping[Key, Kept],
    x_grad_dtype: torch.dtype | None,
) -> Flow:
    """The first half of the gradients of ``project``: dx, for which x itself is not needed.

    Args:
        grads: dy of each projection, ``[tokens, out_i]``, or None where nothing flows back: such a projection takes
            no part, so that its tensors get no gradient, as in autograd.
        projections: as in forward; what :func:`~patchkit_kernels.lora.saving.read_by_backward` leaves out is not read.
        precision: as in forward.
        needs: for each projection, what needs a gradient.
        kept: of forward.
        x_grad_dtype: the dtype of dx, or None if dx is not needed.
    """
    flow = Flow(None, {}, {}, {}, {}, None, {})
    for i, grad in enumerate(grads):
        if grad is not None:
            _through_adapters(i, grad, projections[i], precision, needs[i], kept, flow)
    plain: list[Key] = []
    for (i, j), grad in flow.low_rank.items():
        if x_grad_dtype is None and not needs[i].adapters[j].lora_a:
            continue
        adapter = projections[i].adapters[j]
        flow.reduced[i, j] = _scaled_product(grad.to(precision.lora), adapter.lora_b, adapter.scaling)
        if not adapter.dropout:
            plain.append((i, j))
    stacked = _beside([flow.reduced[key] for key in plain]) if plain else None
    flow = flow._replace(stacked=stacked)
    if x_grad_dtype is None or not flow.base:
        return flow
    weights = {i: dense_weight(projections[i]) for i in flow.base}
    pairs = [(grad.to(precision.base), weights[i].to(precision.base)) for i, grad in flow.base.items()]
    if stacked is not None:
        pairs.append((stacked, stack_a([projections[i].adapters[j] for i, j in plain], precision)))
    total = _sum_of_products(pairs, x_grad_dtype)
    for (i, j), reduced in flow.reduced.items():
        adapter = projections[i].adapters[j]
        if adapter.dropout:
            part = reduced @ adapter.lora_a.to(precision.lora)
            if (i, j) in flow.dropped:
                part.addmm_(flow.dropped[i, j].to(precision.lora), weights[i].to(precision.lora))
            masked_(part, _present(kept[i, j].mask), dropout_scale(adapter))
            total.add_(part)
    return flow._replace(x=total)


def _through_adapters(
    i: int,
    grad: Tensor,
    projection: Projection,
    precision: Precision,
    needs: Needs,
    kept: Mapping[Key, Kept],
    flow: Flow,
) -> None:
    """Fill in what one projection's adapters, from the last to the first, make of the gradient of its output."""
    wide = sum_dtype(projection, precision)
    for j in reversed(range(len(projection.adapters))):
        adapter = projection.adapters[j]
        if adapter.factor is None:
            flow.low_rank[i, j] = grad
            continue
        grad = grad.to(wide)
        scaled = grad * adapter.factor
        if needs.adapters[j].factor:
            flow.factor[i, j] = (grad * _present(kept[i, j].direction).to(wide)).sum(0)
        flow.low_rank[i, j] = scaled
        if not adapter.dropout:
            grad = scaled
        else:
            flow.dropped[i, j] = scaled - grad
    flow.base[i] = grad


def parameter_backward(
    flow: Flow,
    grads: Sequence[Tensor | None],
    x: Tensor | None,
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
    kept: Mapping[Key, Kept],
) -> list[Grads]:
    """The second half: the gradients of the projections' own tensors, with only the products that are asked for.

    Args:
        flow: of :func:`input_backward` for the same arguments.
        grads: as there.
        x: the input of forward, ``[tokens, in]``; may be None if no W and no A needs a gradient, and forward kept t
            wherever a B does.
        projections: as in forward.
        precision: as in forward.
        needs: as there.
        kept: of forward.
    """
    d_lora_a = _d_lora_a(flow, x, projections, precision, needs, kept)
    d_lora_b = _d_lora_b(flow, x, projections, precision, needs, kept)
    results = []
    for i, (grad, projection, need) in enumerate(zip(grads, projections, needs, strict=True)):
        if grad is None:
            results.append(Grads(adapters=(AdapterGrads(),) * len(projection.adapters)))
            continue
        adapters = tuple(
            AdapterGrads(
                d_lora_a.get((i, j)),
                d_lora_b.get((i, j)),
                _d_lora_bias(flow.low_rank[i, j], adapter.bias, adapter.scaling) if need.adapters[j].bias else None,
                flow.factor.get((i, j)),
            )
            for j, adapter in enumerate(projection.adapters)
        )
        d_weight = _d_weight(i, flow, _present(x), projection, precision, kept) if need.weight else None
        d_bias = grad.sum(0, dtype=_present(projection.bias).dtype) if need.bias else None
        results.append(Grads(d_weight, d_bias, adapters))
    return results


def _d_lora_a(
    flow: Flow,
    x: Tensor | None,
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
    kept: Mapping[Key, Kept],
) -> dict[Key, Tensor]:
    """dA = dt^T d(x), in one product for all adapters without dropout."""
    wanted = [(i, j) for i, j in flow.reduced if needs[i].adapters[j].lora_a]
    if not wanted:
        return {}
    lora_x = _present(x).to(precision.lora)
    found: dict[Key, Tensor] = {}
    plain = [(i, j) for i, j in wanted if not projections[i].adapters[j].dropout]
    if plain:
        reduced = [flow.reduced[key] for key in plain]
        complete = flow.stacked is not None and flow.stacked.shape[1] == sum(t.shape[1] for t in reduced)
        chosen = _present(flow.stacked) if complete else _beside(reduced)
        product = chosen.t() @ lora_x
        parts = torch.split(product, [t.shape[1] for t in reduced])
        found.update(zip(plain, parts, strict=True))
    for i, j in wanted:
        adapter = projections[i].adapters[j]
        if adapter.dropout:
            found[i, j] = flow.reduced[i, j].t() @ drop(lora_x, _present(kept[i, j].mask), adapter)
    # Parts of one product would share its memory.
    shared = set(plain) if len(plain) > 1 else ()
    return {
        (i, j): grad.to(projections[i].adapters[j].lora_a.dtype, copy=(i, j) in shared)
        for (i, j), grad in found.items()
    }


def _d_lora_b(
    flow: Flow,
    x: Tensor | None,
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
    kept: Mapping[Key, Kept],
) -> dict[Key, Tensor]:
    """dB = s dl^T t, with t made again where it was not kept."""
    wanted = [(i, j) for i, j in flow.low_rank if needs[i].adapters[j].lora_b]
    if not wanted:
        return {}
    entries = {key: kept[key] for key in wanted if key in kept}
    reduced = {key: entry.reduced for key, entry in entries.items() if entry.reduced is not None}
    missing = [key for key in wanted if key not in reduced]
    if missing:
        masks = {key: entry.mask for key, entry in entries.items() if entry.mask is not None}
        reduced.update(reduce(_present(x), projections, missing, masks, precision))
    found = {}
    for i, j in wanted:
        adapter, grad = projections[i].adapters[j], flow.low_rank[i, j].to(precision.lora)
        found[i, j] = _scaled_product(grad.t(), reduced[i, j], adapter.scaling).to(adapter.lora_b.dtype)
    return found


def _d_lora_bias(grad: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """dc = s times the sum of dl over tokens, rounded once."""
    total = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))
    return total.mul_(scaling).to(_present(bias).dtype)


def _d_weight(
    i: int, flow: Flow, x: Tensor, projection: Projection, precision: Precision, kept: Mapping[Key, Kept]
) -> Tensor:
    """dW = e^T x, and (g - 1) e^T d(x) for DoRA with dropout."""
    product = flow.base[i].to(precision.base).t() @ x.to(precision.base)
    for j, adapter in enumerate(projection.adapters):
        if (i, j) in flow.dropped:
            dropped = drop(x.to(precision.lora), _present(kept[i, j].mask), adapter)
            product = product + flow.dropped[i, j].to(precision.lora).t() @ dropped
    assert isinstance(projection.weight, Tensor)  # narrows the type: a quantised weight never needs a gradient
    return product.to(projection.weight.dtype)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # narrows the type; every caller has looked
    return tensor


def _beside(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), 1)


def _scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """s * left @ right in left's dtype, scaled inside the product: beta=0 means that the addend is not read."""
    unread = left.new_empty(())
    return torch.addmm(unread, left, right.to(left.dtype), beta=0, alpha=scaling)


def _sum_of_products(pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """The sum of left @ right over all pairs, in one buffer of the given dtype."""
    (left, right), *rest = pairs
    total = (left @ right).to(dtype)
    for left, right in rest:
        if left.dtype == dtype:
            total.addmm_(left, right)
        else:
            # Under autocast, and for float32 adapters over a bfloat16 base: add with type promotion, no extra copy.
            total.add_(left @ right)
    return total
