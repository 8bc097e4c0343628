"""Products with quantised weights made again in backward, as forward made them.

Autocast reaches into the library that makes such a product, and a backward runs without it. So the product is made in
the autocast region of forward; all others are in dtypes that are said, and need none.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import QuantizedWeight


def autocast_of(x: Tensor, weights: Iterable[Tensor | QuantizedWeight | None]) -> torch.dtype | None:
    """The dtype of the autocast region for x's device; None outside one, or where no weight is quantised."""
    if all(weight is None or isinstance(weight, Tensor) for weight in weights):
        return None
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def as_in_forward(weight: QuantizedWeight, autocast: torch.dtype | None) -> QuantizedWeight:
    """The weight, with products as in an autocast region of this dtype."""
    return weight if autocast is None else _InRegion(weight, autocast)


class _InRegion:
    def __init__(self, weight: QuantizedWeight, autocast: torch.dtype) -> None:
        self._weight, self._autocast = weight, autocast

    def linear(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self._autocast):
            return self._weight.linear(x)

    def dense(self) -> Tensor:
        return self._weight.dense()

    def compute_dtype(self, given: torch.dtype) -> torch.dtype:
        return self._weight.compute_dtype(given)

    @property
    def by_rows(self) -> bool:
        return self._weight.by_rows

    @property
    def shape(self) -> tuple[int, int]:
        return self._weight.shape

    @property
    def device(self) -> torch.device:
        return self._weight.device
