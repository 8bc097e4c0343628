"""DoRA's factor g = m / norm, made before the fused functions by ordinary operations.

So it has its own place in autograd's graph, as in PEFT: the fused functions take g and give its gradient, and m itself
is read by nothing afterwards. The norm is a constant (:mod:`patchkit_kernels.ops.dora_norm`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import Adapter, Precision, Projection, dense_weight, sum_dtype
from patchkit_kernels.ops.dora_norm import dora_weight_norm


def with_factors(projections: Sequence[Projection], precision: Precision) -> Sequence[Projection]:
    """The projections with g in the place of every magnitude."""
    for projection in projections:
        for adapter in projection.adapters:
            if adapter.magnitude is not None:
                return [_with_factors(projection, precision) for projection in projections]
    return projections


def _with_factors(projection: Projection, precision: Precision) -> Projection:
    if all(adapter.magnitude is None for adapter in projection.adapters):
        return projection
    weight = dense_weight(projection)
    dtype = sum_dtype(projection, precision)
    adapters = [
        adapter if adapter.magnitude is None else adapter._replace(magnitude=_factor(adapter, weight, dtype))
        for adapter in projection.adapters
    ]
    return projection._replace(adapters=tuple(adapters))


def _factor(adapter: Adapter, weight: Tensor, dtype: torch.dtype) -> Tensor:
    assert adapter.magnitude is not None  # narrows the type; the caller has looked
    norm = dora_weight_norm(weight, adapter.lora_a, adapter.lora_b, adapter.scaling, adapter.bias)
    magnitude = adapter.magnitude
    return magnitude / norm if magnitude.dtype == norm.dtype == dtype else magnitude.to(dtype) / norm.to(dtype)
