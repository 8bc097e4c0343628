"""Linear projections of one input with their LoRA adapters: the products that forward and backward need.

For an input x ``[tokens, in]`` and each projection i (Hu et al., 2021, "LoRA", section 4.1; PEFT's ``lora.Linear``)::

    t_i = x A_i^T                             [tokens, rank]
    y_i = x W_i^T + b_i + s_i t_i B_i^T       [tokens, out]

and, with dy_i given and dt_i = s_i dy_i B_i::

    dx   = sum_i dy_i W_i + dt_i A_i
    dA_i = dt_i^T x        dB_i = s_i dy_i^T t_i
    dW_i = dy_i^T x        db_i = sum over tokens of dy_i

The A's of one input are stacked into one product, forward and backward. dx needs no x, so that a caller who computes x
again can do it afterwards. t is not kept for backward but computed again
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


class Flow(NamedTuple):
    """What flows back through projections, and what is used again for the gradients of their tensors.

    Attributes:
        x: dx ``[tokens, in]``, or None if it is not needed.
        d_reduced: dt_i ``[tokens, rank_i]`` by index of the projection.
        stacked: all of them side by side, ``[tokens, sum of ranks]``, or None if there is none.
        stacked_a: the A's that belong to them, ``[sum of ranks, in]``, or None.
    """

    x: Tensor | None
    d_reduced: dict[int, Tensor]
    stacked: Tensor | None
    stacked_a: Tensor | None


def input_backward(
    grads: Sequence[Tensor | None],
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
    x_grad_dtype: torch.dtype | None,
) -> Flow:
    """The first half of the gradients of :func:`project`: dx, for which x itself is not needed.

    Args:
        grads: dy of each projection, ``[tokens, out_i]``, or None where nothing flows back: such a projection takes
            no part, so that its tensors get no gradient, as in autograd.
        projections: as in forward.
        precision: as in forward.
        needs: for each projection, what needs a gradient.
        x_grad_dtype: the dtype of dx, or None if dx is not needed.
    """
    live = {i: grad for i, grad in enumerate(grads) if grad is not None}
    through = [i for i in live if projections[i].lora_a is not None and (x_grad_dtype is not None or needs[i].lora_a)]
    d_reduced = {
        i: _scaled_product(live[i].to(precision.lora), _present(projections[i].lora_b), projections[i]) for i in through
    }
    stacked = _stack(list(d_reduced.values()), 1) if through else None
    stacked_a = _stack_a([projections[i] for i in through], precision)
    if x_grad_dtype is None or not live:
        return Flow(None, d_reduced, stacked, stacked_a)
    pairs = [(grad.to(precision.base), projections[i].weight.to(precision.base)) for i, grad in live.items()]
    if stacked is not None and stacked_a is not None:
        pairs.append((stacked, stacked_a))
    return Flow(_sum_of_products(pairs, x_grad_dtype), d_reduced, stacked, stacked_a)


def parameter_backward(
    flow: Flow,
    grads: Sequence[Tensor | None],
    x: Tensor | None,
    projections: Sequence[Projection],
    precision: Precision,
    needs: Sequence[Needs],
) -> list[Grads]:
    """The second half: the gradients of the projections' own tensors, with only the products that are asked for.

    Args:
        flow: of :func:`input_backward` for the same arguments.
        grads: as there.
        x: the input of forward, ``[tokens, in]``; may be None if no W, A or B needs a gradient.
        projections: as in forward.
        precision: as in forward.
        needs: as there.
    """
    live = {i: grad for i, grad in enumerate(grads) if grad is not None}
    to_a, to_b = [i for i in live if needs[i].lora_a], [i for i in live if needs[i].lora_b]
    lora_x = _present(x).to(precision.lora) if to_a or to_b else None
    through = list(flow.d_reduced)
    d_lora_a: dict[int, Tensor] = {}
    if to_a:
        chosen = _present(flow.stacked) if to_a == through else _stack([flow.d_reduced[i] for i in to_a], 1)
        parts = torch.split(chosen.t() @ _present(lora_x), _ranks(to_a, projections), 0)
        d_lora_a = {i: part.to(_present(projections[i].lora_a).dtype) for i, part in zip(to_a, parts, strict=True)}
    d_lora_b: dict[int, Tensor] = {}
    if to_b:
        stacked_a = flow.stacked_a if to_b == through else _stack_a([projections[i] for i in to_b], precision)
        reduced = torch.split(_present(lora_x) @ _present(stacked_a).t(), _ranks(to_b, projections), 1)
        for i, t in zip(to_b, reduced, strict=True):
            product = _scaled_product(live[i].to(precision.lora).t(), t, projections[i])
            d_lora_b[i] = product.to(_present(projections[i].lora_b).dtype)
    results = [Grads() for _ in projections]
    for i, grad in live.items():
        d_weight, d_bias = _d_base(grad, x, projections[i], precision, needs[i])
        results[i] = Grads(d_weight, d_bias, d_lora_a.get(i), d_lora_b.get(i))
    return results


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
