"""The terms that adapters add to a projection, forward and gradient: LoRA, DoRA, and DoRA with dropout.

A term makes of r, the sum so far, the sum with it. Its gradient makes of e, the gradient of the sum with it, that of
the sum before, and dl, the gradient of ``l = s (t B^T + c)``, of which :mod:`patchkit_kernels.lora.low_rank` makes
those of A, B and c. For DoRA, g is the factor, and its gradient dg is made where the *direction*, what g scales, was
kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.lora.bf16x3 import left_pieces, right_pieces
from patchkit_kernels.lora.call import Kept, TermGradient
from patchkit_kernels.lora.products import beside
from patchkit_kernels.lora.projection import Adapter, Precision, present
from patchkit_kernels.lora.stand_in import recalled
from patchkit_kernels.ops.addmm import addmm_
from patchkit_kernels.ops.registration import results_are_held


def add_lora_term(r: Tensor, t: Tensor, adapter: Adapter, precision: Precision) -> Tensor:
    """``r + l = r + s (t B^T + c)``, in the buffer of r ``[tokens, out]`` if that may be (Hu et al. 2021, section 4.1).

    Args:
        r: the sum so far, ``[tokens, out]``, a buffer of ours.
        t: ``[tokens, rank]``.
        adapter: with B, s and c.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """
    in_place, lora_b, scaling = _may_write(), adapter.lora_b.to(precision.lora), adapter.scaling
    if r.dtype == precision.lora:
        r = addmm_(r, t, lora_b.t(), scaling) if in_place else r.addmm(t, lora_b.t(), alpha=scaling)
    else:
        r = (r.add_ if in_place else r.add)(t @ lora_b.t(), alpha=scaling)
    if adapter.bias is not None:
        r = (r.add_ if in_place else r.add)(adapter.bias.to(precision.lora), alpha=scaling)
    return r


def are_plain(adapters: Sequence[Adapter]) -> bool:
    """Whether all that is added of these adapters are products: no DoRA, and no bias of B."""
    return all(adapter.factor is None and adapter.bias is None for adapter in adapters)


def add_lora_terms_in_pieces(r: Tensor, made: Sequence[Kept], adapters: Sequence[Adapter]) -> Tensor:
    """``r + sum s t B^T`` of plain adapters, rounded once (:mod:`patchkit_kernels.lora.bf16x3`).

    Args:
        r: bfloat16 ``[tokens, out]``, a buffer of ours.
        made: with t of each adapter, float32 ``[tokens, rank]``.
        adapters: with B and s.
    """
    left = beside([left_pieces(present(one.reduced)) for one in made])
    right = beside([right_pieces(one.lora_b.to(torch.float32), one.scaling) for one in adapters])
    return addmm_(r, left, right.t()) if _may_write() else r.addmm(left, right.t())


def lora_gradient(e: Tensor) -> TermGradient:
    """``dl = e``, and e goes on."""
    return TermGradient(e, e)


def add_dora_term(
    unbiased: Tensor, bias: Tensor | None, adapter: Adapter, made: Kept, precision: Precision
) -> tuple[Tensor, Tensor]:
    """``r + (g - 1) (r - b) + g l  =  b + g (u + l)`` with ``u = r - b`` (Liu et al. 2024, section 4.3).

    Args:
        unbiased: u, ``[tokens, out]``, a buffer of ours.
        bias: b, ``[out]``, or None.
        adapter: with g.
        made: t, and the direction if an earlier call kept it.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.

    Returns:
        The sum, and the direction ``u + l``, each ``[tokens, out]``.
    """
    direction = _direction(unbiased, adapter, made, precision)
    factor = present(adapter.factor)
    return direction * factor if bias is None else torch.addcmul(bias, direction, factor), direction


def dora_gradient(e: Tensor, adapter: Adapter, direction: Tensor | None) -> TermGradient:
    """``dl = g e``, ``dg = sum(e (u + l))`` over tokens, and ``g e`` goes on: through r as through l."""
    scaled = e * present(adapter.factor)
    return TermGradient(scaled, scaled, None, _d_factor(e, direction))


def add_dora_dropout_term(
    r: Tensor, product: Tensor, adapter: Adapter, made: Kept, precision: Precision
) -> tuple[Tensor, Tensor]:
    """``r + (g - 1) u + g l  =  (r - u) + g (u + l)`` with ``u = d(x) W^T``, as PEFT has it where it drops.

    Args:
        r: the sum so far, ``[tokens, out]``.
        product: u, ``[tokens, out]``, a buffer of ours.
        adapter: with g.
        made: t, and the direction if an earlier call kept it.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.

    Returns:
        The sum, and the direction ``u + l``, each ``[tokens, out]``.
    """
    without = r - product
    direction = _direction(product, adapter, made, precision)
    return torch.addcmul(without, direction, present(adapter.factor)), direction


def dora_dropout_gradient(e: Tensor, adapter: Adapter, direction: Tensor | None) -> TermGradient:
    """``dl = g e``, ``dg = sum(e (u + l))`` over tokens, ``du = (g - 1) e``, and e goes on."""
    scaled = e * present(adapter.factor)
    return TermGradient(e, scaled, scaled - e, _d_factor(e, direction))


def _direction(u: Tensor, adapter: Adapter, made: Kept, precision: Precision) -> Tensor:
    """``u + l``; the value that an earlier call kept, if one did, with the derivatives of this computation."""
    return recalled(made.direction, add_lora_term(u, present(made.reduced), adapter, precision))


def _d_factor(e: Tensor, direction: Tensor | None) -> Tensor | None:
    return None if direction is None else (e * direction.to(e.dtype)).sum(0)


def _may_write() -> bool:
    """Whether a product that nobody else holds may be written over.

    Selective checkpointing holds it: its dispatch mode keeps results of operations and refuses to see them change.
    """
    return torch.compiler.is_compiling() or not results_are_held()
