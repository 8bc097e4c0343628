"""Projections as the flat arguments that an autograd function takes, and their gradients as what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor

from patchkit_kernels.lora.projection import (
    Adapter,
    AdapterGrads,
    AdapterNeeds,
    Grads,
    Kept,
    Key,
    Needs,
    Projection,
    QuantizedWeight,
)

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


def no_grads(structure: Structure) -> list[Grads]:
    """The gradients of projections through which nothing flows back."""
    return [Grads(adapters=(AdapterGrads(),) * len(options)) for _, options in structure]


def gather_grads(grads: Sequence[Grads]) -> list[Tensor | None]:
    """Every gradient of every projection, in the order of :func:`flatten`."""
    gathered: list[Tensor | None] = []
    for weight, bias, adapters in grads:
        gathered += (weight, bias)
        for adapter in adapters:
            gathered += adapter
    return gathered


def flatten_kept(kept: Mapping[Key, Kept]) -> tuple[tuple[Key, ...], list[Tensor | None]]:
    """What forward kept, as keys and as tensors to save."""
    return tuple(kept), [tensor for entry in kept.values() for tensor in entry]


def unflatten_kept(keys: Sequence[Key], tensors: Sequence[Tensor | None]) -> dict[Key, Kept]:
    """The inverse of :func:`flatten_kept`."""
    size = len(Kept._fields)
    return {key: Kept(*tensors[size * i : size * (i + 1)]) for i, key in enumerate(keys)}
