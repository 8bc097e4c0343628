"""Projections as the flat arguments that an autograd function takes, and their gradients as what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from torch import Tensor

from patchkit_kernels.lora.call import AdapterNeeds, Grads, Kept, Needs
from patchkit_kernels.lora.projection import Adapter, Projection, QuantizedWeight

Structure: TypeAlias = "tuple[tuple[QuantizedWeight | None, tuple[tuple[float, float], ...]], ...]"
"""What is not a tensor, for each projection: its quantised weight, and scaling and dropout of each adapter."""


def flatten(projections: Sequence[Projection]) -> list[Tensor | None]:
    """Every tensor of every projection: W (None if quantised), b, and A, B, c, g of each adapter."""
    tensors: list[Tensor | None] = []
    for weight, bias, adapters in projections:
        tensors += (weight if isinstance(weight, Tensor) else None, bias)
        for adapter in adapters:
            tensors += (adapter.lora_a, adapter.lora_b, adapter.bias, adapter.factor)
    return tensors


def structure_of(projections: Sequence[Projection]) -> Structure:
    """What :func:`flatten` leaves out."""
    return tuple(
        [
            (None if isinstance(weight, Tensor) else weight, tuple([(a.scaling, a.dropout) for a in adapters]))
            for weight, _, adapters in projections
        ]
    )


def unflatten(tensors: Sequence[Tensor | None], structure: Structure) -> list[Projection]:
    """The inverse of :func:`flatten` and :func:`structure_of`."""
    rest = iter(tensors)
    return [_projection(rest, quantized, options) for quantized, options in structure]


def _projection(
    rest: Iterator[Tensor | None], quantized: QuantizedWeight | None, options: Sequence[tuple[float, float]]
) -> Projection:
    stored, bias = next(rest), next(rest)
    weight = stored if quantized is None else quantized
    assert weight is not None  # narrows the type: flatten wrote it
    adapters = []
    for scaling, dropout in options:
        lora_a, lora_b = next(rest), next(rest)
        assert lora_a is not None  # narrows the types: flatten wrote them
        assert lora_b is not None
        adapters.append(Adapter(lora_a, lora_b, scaling, next(rest), next(rest), dropout))
    return Projection(weight, bias, tuple(adapters))


def needs_of(needed: Sequence[bool], structure: Structure) -> list[Needs]:
    """What each projection needs, from the matching part of ``ctx.needs_input_grad``."""
    rest = iter(needed)
    needs = []
    for _, options in structure:
        weight, bias = next(rest), next(rest)
        adapters = tuple([AdapterNeeds(next(rest), next(rest), next(rest), next(rest)) for _ in options])
        needs.append(Needs(weight, bias, adapters))
    return needs


def flatten_grads(grads: Sequence[Grads | None], structure: Structure) -> list[Tensor | None]:
    """Every gradient of every projection, in the order of :func:`flatten`; None for all of one without."""
    gathered: list[Tensor | None] = []
    for found, (_, options) in zip(grads, structure, strict=True):
        if found is None:
            gathered += (None,) * (len(Projection._fields) - 1 + len(AdapterNeeds._fields) * len(options))
            continue
        gathered += (found.weight, found.bias)
        for adapter in found.adapters:
            gathered += adapter
    return gathered


def flatten_kept(kept: Sequence[Sequence[Kept]]) -> list[Tensor | None]:
    """What forward kept of every adapter of every projection, as tensors to save."""
    return [tensor for entries in kept for entry in entries for tensor in entry]


def unflatten_kept(tensors: Sequence[Tensor | None], structure: Structure) -> list[list[Kept]]:
    """The inverse of :func:`flatten_kept`."""
    rest = iter(tensors)
    return [[Kept(next(rest), next(rest), next(rest)) for _ in options] for _, options in structure]
