"""Linear projections of one input with their LoRA adapters: the products that forward and backward need.

For an input x ``[tokens, in]`` and each projection i (Hu et al., 2021, "LoRA", section 4.1; PEFT's ``lora.Linear``)::

    t_i = x A_i^T                             [tokens, rank]
    y_i = x W_i^T + b_i + s_i t_i B_i^T       [tokens, out]

and, with dy_i given and dt_i = s_i dy_i B_i::

    dx   = sum_i dy_i W_i + dt_i A_i
    dA_i = dt_i^T x        dB_i = s_i dy_i^T t_i
    dW_i = dy_i^T x        db_i = sum over tokens of dy_i

The A's of one input are stacked into one product, forward and backward. t is not kept for backward but computed again
where a dB needs it: that costs one product with the stacked A's and keeps nothing but x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Projection(NamedTuple):
    """The tensors of one linear projection and of its adapter, if it has one.

    Attributes:
        weight: W, ``[out, in]``.
        bias: b, ``[out]``, or None.
        lora_a: A, ``[rank, in]``, or None if there is no adapter; then ``lora_b`` is None too.
        lora_b: B, ``[out, rank]``.
        scaling: s.
    """

    weight: Tensor
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None
    scaling: float = 1.0


class Precision(NamedTuple):
    """The dtypes in which PEFT computes.

    Attributes:
        base: of the products with W, and of every output. W's dtype, or autocast's.
        lora: of the products with A and B. Theirs (PEFT keeps adapters in float32 over a bfloat16 base unless told
            otherwise), or autocast's. The sum of both parts is made in the wider of the two and rounded once.
    """

    base: torch.dtype
    lora: torch.dtype


class Needs(NamedTuple):
    """Which tensors of a projection need a gradient."""

    weight: bool
    bias: bool
    lora_a: bool
    lora_b: bool


class Grads(NamedTuple):
    """The gradients of a projection's tensors; None where none is needed, or where nothing flows back."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    lora_a: Tensor | None = None
    lora_b: Tensor | None = None


def project(x: Tensor, projections: Sequence[Projection], precision: Precision) -> list[Tensor]:
    """Apply every projection to one input.

    Args:
        x: ``[tokens, in]``, of any floating dtype.
        projections: any number, with or without adapters.
        precision: see :class:`Precision`.

    Returns:
        One contiguous ``[tokens, out_i]`` in ``precision.base`` for each projection.
    """
    reduced = _reduce(x, projections, precision)
    base_input = x.to(precision.base)
    return [_project(base_input, p, t, precision) for p, t in zip(projections, reduced, strict=True)]


def project_backward(
    grads: Sequence[Tensor | None],
    x: Tensor | None,
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
    x_grad_dtype: torch.dtype | None,
) -> tuple[Tensor | None, list[Grads]]:
    """The gradients of :func:`project`, with only the products that are asked for.

    Args:
        grads: dy of each projection, ``[tokens, out_i]``, or None where nothing flows back: such a projection takes
            no part, so that its tensors get no gradient, as in autograd.
        x: the input of forward; may be None if no W, A or B needs a gradient.
        projections: as in forward.
        precision: as in forward.
        needs: for each projection, what needs a gradient.
        x_grad_dtype: the dtype of dx, or None if dx is not needed.

    Returns:
        dx ``[tokens, in]`` or None, and the gradients of each projection.
    """
    live = {i: grad for i, grad in enumerate(grads) if grad is not None}
    adapters = _adapters_backward(
        {i: grad.to(precision.lora) for i, grad in live.items() if projections[i].lora_a is not None},
        x,
        projections,
        precision,
        needs,
        x_grad_dtype is not None,
    )
    results = [Grads() for _ in projections]
    for i, grad in live.items():
        d_weight, d_bias = _d_base(grad, x, projections[i], precision, needs[i])
        results[i] = Grads(d_weight, d_bias, adapters.lora_a.get(i), adapters.lora_b.get(i))
    if x_grad_dtype is None or not live:
        return None, results
    pairs = [(grad.to(precision.base), projections[i].weight.to(precision.base)) for i, grad in live.items()]
    if adapters.d_reduced is not None and adapters.stacked_a is not None:
        pairs.append((adapters.d_reduced, adapters.stacked_a))
    return _sum_of_products(pairs, x_grad_dtype), results


class _AdapterGrads(NamedTuple):
    """What flows back through the adapters.

    Attributes:
        d_reduced: [dt_1, dt_2, ...], ``[tokens, sum of ranks]``, or None.
        stacked_a: the A's that belong to it, ``[sum of ranks, in]``, or None.
        lora_a: dA by index of the projection.
        lora_b: dB by index of the projection.
    """

    d_reduced: Tensor | None
    stacked_a: Tensor | None
    lora_a: dict[int, Tensor]
    lora_b: dict[int, Tensor]


def _adapters_backward(
    grads: dict[int, Tensor],
    x: Tensor | None,
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
    flows_back: bool,
) -> _AdapterGrads:
    """dt, dA and dB of the projections with adapters, whose dy are given in the adapters' dtype."""
    through = [i for i in grads if flows_back or needs[i].lora_a]
    to_a, to_b = [i for i in grads if needs[i].lora_a], [i for i in grads if needs[i].lora_b]
    x = x.to(precision.lora) if x is not None and (to_a or to_b) else None
    d_reduced = {i: _scaled_product(grads[i], _present(projections[i].lora_b), projections[i]) for i in through}
    stacked_a = _stack_a([projections[i] for i in through], precision)
    d_stacked = _stack(list(d_reduced.values()), 1) if through else None
    d_lora_a: dict[int, Tensor] = {}
    if to_a:
        chosen = _present(d_stacked) if to_a == through else _stack([d_reduced[i] for i in to_a], 1)
        parts = torch.split(chosen.t() @ _present(x), _ranks(to_a, projections), 0)
        d_lora_a = {i: part.to(_present(projections[i].lora_a).dtype) for i, part in zip(to_a, parts, strict=True)}
    d_lora_b: dict[int, Tensor] = {}
    if to_b:
        again = stacked_a if to_b == through else _stack_a([projections[i] for i in to_b], precision)
        reduced = torch.split(_present(x) @ _present(again).t(), _ranks(to_b, projections), 1)
        for i, t in zip(to_b, reduced, strict=True):
            lora_b = _present(projections[i].lora_b)
            d_lora_b[i] = _scaled_product(grads[i].t(), t, projections[i]).to(lora_b.dtype)
    return _AdapterGrads(d_stacked, stacked_a, d_lora_a, d_lora_b)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # narrows the type; every caller has looked
    return tensor


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _stack_a(projections: Sequence[Projection], precision: Precision) -> Tensor | None:
    """The A's on top of each other, ``[sum of ranks, in]``; None if there is none."""
    stacked = [p.lora_a.to(precision.lora) for p in projections if p.lora_a is not None]
    return _stack(stacked, 0) if stacked else None


def _ranks(which: Sequence[int], projections: Sequence[Projection]) -> list[int]:
    return [_present(projections[i].lora_a).shape[0] for i in which]


def _reduce(x: Tensor, projections: Sequence[Projection], precision: Precision) -> list[Tensor | None]:
    """t_i = x A_i^T, all in one product; None for a projection without adapter."""
    stacked = _stack_a(projections, precision)
    if stacked is None:
        return [None] * len(projections)
    which = [i for i, p in enumerate(projections) if p.lora_a is not None]
    parts = torch.split(x.to(precision.lora) @ stacked.t(), _ranks(which, projections), 1)
    reduced = dict(zip(which, parts, strict=True))
    return [reduced.get(i) for i in range(len(projections))]


def _project(x: Tensor, projection: Projection, t: Tensor | None, precision: Precision) -> Tensor:
    """y = x W^T + b + s t B^T, the adapter's part added into the base product's buffer."""
    bias = None if projection.bias is None else projection.bias.to(precision.base)
    y = F.linear(x, projection.weight.to(precision.base), bias)
    if t is None:
        return y
    lora_b = _present(projection.lora_b).to(precision.lora)
    if precision.lora == precision.base:
        return y.addmm_(t, lora_b.t(), alpha=projection.scaling)
    if torch.promote_types(precision.lora, precision.base) == precision.lora:
        return y.to(precision.lora).addmm_(t, lora_b.t(), alpha=projection.scaling).to(precision.base)
    return y.add_(t @ lora_b.t(), alpha=projection.scaling)


def _scaled_product(left: Tensor, right: Tensor, projection: Projection) -> Tensor:
    """s * left @ right in left's dtype, scaled inside the product: beta=0 means that the addend is not read."""
    unread = left.new_empty(())
    return torch.addmm(unread, left, right.to(left.dtype), beta=0, alpha=projection.scaling)


def _d_base(
    grad: Tensor, x: Tensor | None, projection: Projection, precision: Precision, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """dW = dy^T x and db, where they are trained."""
    d_weight = d_bias = None
    if needs.weight:
        product = grad.to(precision.base).t() @ _present(x).to(precision.base)
        d_weight = product.to(projection.weight.dtype)
    if needs.bias:
        d_bias = grad.sum(0).to(_present(projection.bias).dtype)
    return d_weight, d_bias


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
