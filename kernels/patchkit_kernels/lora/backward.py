"""Several linear projections of one input with their adapters: gradients.

With dy given, e, the gradient of the sum of terms, goes through a projection's adapters from the last to the first
(:mod:`patchkit_kernels.lora.terms`) and leaves dl of each, and what is left of it at the base product::

    dx = e W + sum dt A        through the masks where there is dropout
    dW = e^T x                 and du^T d(x) for DoRA with dropout, u = d(x) W^T
    db = sum(dy)

dt, dA, dB and dc: :mod:`patchkit_kernels.lora.low_rank`. dx needs no x, so that a caller who computes x again can do it
afterwards. Every gradient owns its memory, all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.lora.bf16x3 import bf16x3, low_rank_product
from patchkit_kernels.lora.call import (
    AdapterFlow,
    AdapterGrads,
    Call,
    Flow,
    Grads,
    Kept,
    Needs,
    ProjectionFlow,
    TermGradient,
)
from patchkit_kernels.lora.low_rank import d_lora_a, d_lora_b, d_lora_bias, d_reduced, drop, stack_a
from patchkit_kernels.lora.products import beside, sum_of_products
from patchkit_kernels.lora.projection import (
    Adapter,
    Precision,
    Projection,
    dense_weight,
    dropout_scale,
    present,
    sum_dtype,
)
from patchkit_kernels.lora.terms import dora_dropout_gradient, dora_gradient, lora_gradient
from patchkit_kernels.lora.wide_sums import is_wider, through_factors_a
from patchkit_kernels.ops.add_masked import add_masked_


def input_backward(
    grads: Sequence[Tensor | None], call: Call, kept: Sequence[Sequence[Kept]], x_grad_dtype: torch.dtype | None
) -> Flow:
    """The first half of the gradients of ``project``: dx, for which x itself is not needed.

    Args:
        grads: dy of each projection, ``[tokens, out_i]``, or None where nothing flows back.
        call: as in forward; what :func:`~patchkit_kernels.lora.saving.read_by_backward` leaves out is not read.
        kept: of forward.
        x_grad_dtype: the dtype of dx, or None if dx is not needed.
    """
    precision, x_needed = call.precision, x_grad_dtype is not None
    projections = [
        None if grad is None else through_terms(grad, projection, needs, entries, precision, x_needed=x_needed)
        for grad, projection, needs, entries in zip(grads, call.projections, call.needs, kept, strict=True)
    ]
    live = [flow for flow in projections if flow is not None]
    plain = [flow for one in live for flow in one.adapters if flow.reduced is not None and not flow.adapter.dropout]
    stacked = beside([present(flow.reduced) for flow in plain]) if plain else None
    d_x = None
    if x_grad_dtype is not None and live:
        d_x = _d_input(live, stacked, [flow.adapter for flow in plain], precision, x_grad_dtype)
    return Flow(d_x, projections, stacked, precision)


def parameter_backward(flow: Flow, x: Tensor | None) -> list[Grads | None]:
    """The second half: the gradients of the projections' own tensors, with only the products that are asked for.

    Args:
        flow: of :func:`input_backward`.
        x: the input of forward, ``[tokens, in]``; may be None if no W and no A needs a gradient, and forward kept t
            wherever a B does.

    Returns:
        The gradients of each projection; None where nothing flows back.
    """
    precision = flow.precision
    adapters = [adapter for one in flow.projections if one is not None for adapter in one.adapters]
    d_as, d_bs = d_lora_a(adapters, x, flow.stacked, precision), d_lora_b(adapters, x, precision)
    found = iter(
        [
            AdapterGrads(d_a, d_b, d_lora_bias(term.low_rank, adapter) if needs.bias else None, term.factor)
            for (adapter, needs, _, term, _), d_a, d_b in zip(adapters, d_as, d_bs, strict=True)
        ]
    )
    results: list[Grads | None] = []
    for one in flow.projections:
        if one is None:
            results.append(None)
            continue
        d_weight = _d_weight(one, present(x), precision) if one.needs.weight else None
        d_bias = one.output.sum(0, dtype=present(one.projection.bias).dtype) if one.needs.bias else None
        results.append(Grads(d_weight, d_bias, [next(found) for _ in one.adapters][::-1]))
    return results


def through_terms(
    grad: Tensor,
    projection: Projection,
    needs: Needs,
    kept: Sequence[Kept],
    precision: Precision,
    *,
    x_needed: bool,
) -> ProjectionFlow:
    """What one projection's terms, from the last to the first, make of the gradient of its output."""
    e, wide = grad, sum_dtype(projection, precision)
    adapters: list[AdapterFlow] = []
    for adapter, adapter_needs, entry in zip(projection.adapters[::-1], needs.adapters[::-1], kept[::-1], strict=True):
        term = _term_gradient(e, adapter, entry, wide)
        reduced = d_reduced(term.low_rank, adapter, precision) if x_needed or adapter_needs.lora_a else None
        adapters.append(AdapterFlow(adapter, adapter_needs, entry, term, reduced))
        e = term.total
    return ProjectionFlow(projection, needs, grad, e, adapters)


def _term_gradient(e: Tensor, adapter: Adapter, kept: Kept, wide: torch.dtype) -> TermGradient:
    if adapter.factor is None:
        return lora_gradient(e)
    gradient = dora_dropout_gradient if adapter.dropout else dora_gradient
    return gradient(e.to(wide), adapter, kept.direction)


def _d_input(
    live: Sequence[ProjectionFlow],
    stacked: Tensor | None,
    plain: Sequence[Adapter],
    precision: Precision,
    dtype: torch.dtype,
) -> Tensor:
    """``dx = e W + sum dt A``, ``[tokens, in]``.

    Args:
        live: what flows back through each projection that takes part.
        stacked: dt of the adapters without dropout, side by side.
        plain: these adapters.
        precision: as in forward.
        dtype: of dx.
    """
    weights = [dense_weight(flow.projection) for flow in live]
    pairs = [
        (flow.base.to(precision.base), weight.to(precision.base)) for flow, weight in zip(live, weights, strict=True)
    ]
    in_pieces, total = bf16x3(live[0].output, precision), None
    if stacked is not None and in_pieces:
        total = low_rank_product(stacked, stack_a(plain, precision))
    elif stacked is not None and is_wider(dtype, precision.lora):
        total = through_factors_a(stacked, stack_a(plain, precision), dtype)
    elif stacked is not None:
        pairs.append((stacked, stack_a(plain, precision)))
    total = sum_of_products(pairs, dtype, total)
    for flow, weight in zip(live, weights, strict=True):
        for adapter, _, kept, term, reduced in flow.adapters:
            if adapter.dropout and in_pieces and term.dropped_product is None:
                scale = dropout_scale(adapter.dropout)
                part = low_rank_product(present(reduced), adapter.lora_a.to(precision.lora), scale)
                add_masked_(total, part, present(kept.mask), 1.0)
            elif adapter.dropout:
                part = present(reduced) @ adapter.lora_a.to(precision.lora)
                if term.dropped_product is not None:
                    part.addmm_(term.dropped_product.to(precision.lora), weight.to(precision.lora))
                add_masked_(total, part, present(kept.mask), dropout_scale(adapter.dropout))
    return total


def _d_weight(flow: ProjectionFlow, x: Tensor, precision: Precision) -> Tensor:
    """``dW = e^T x``, and ``du^T d(x)`` for DoRA with dropout, ``[out, in]``."""
    product = flow.base.to(precision.base).t() @ x.to(precision.base)
    for adapter, _, kept, term, _ in reversed(flow.adapters):
        if term.dropped_product is not None:
            dropped = drop(x.to(precision.lora), present(kept.mask), adapter)
            product = product + term.dropped_product.to(precision.lora).t() @ dropped
    weight = flow.projection.weight
    assert isinstance(weight, Tensor)  # narrows the type: a quantised weight never needs a gradient
    return product.to(weight.dtype)
