"""Projections as the flat tensor arguments that an autograd function takes, and their gradients as what it returns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from patchkit_kernels.projection import Grads, Needs, Projection

TENSORS = 4
"""Tensors of a projection: weight, bias, A, B, in this order wherever they are flat."""


def flatten(projections: Sequence[Projection]) -> list[Tensor | None]:
    """Every tensor of every projection, :data:`TENSORS` each."""
    return [tensor for p in projections for tensor in (p.weight, p.bias, p.lora_a, p.lora_b)]


def unflatten(tensors: Sequence[Tensor | None], scalings: Sequence[float]) -> list[Projection]:
    """The inverse of :func:`flatten`."""
    projections = []
    for i, scaling in enumerate(scalings):
        weight, bias, lora_a, lora_b = tensors[TENSORS * i : TENSORS * (i + 1)]
        assert weight is not None  # narrows the type: flatten wrote it
        projections.append(Projection(weight, bias, lora_a, lora_b, scaling))
    return projections


def needs_of(needed: Sequence[bool]) -> list[Needs]:
    """What each projection needs, from the matching part of ``ctx.needs_input_grad``."""
    return [Needs(*needed[i : i + TENSORS]) for i in range(0, len(needed), TENSORS)]


def gather_grads(grads: Sequence[Grads]) -> list[Tensor | None]:
    """Every gradient of every projection, in the order of :func:`flatten`."""
    return [grad for found in grads for grad in found]
