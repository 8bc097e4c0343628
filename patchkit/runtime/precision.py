"""In which dtypes upstream computes a projection: a table, filled once, since it is asked for at every call."""

from __future__ import annotations

import itertools
from typing import Literal, TypeAlias

import torch

from patchkit.adapters.protocol import Reason
from patchkit_kernels.lora.projection import Precision

AdapterPrecision = Literal["peft", "fast"]
"""The option ``precision`` of ``patchkit.apply``: the adapter's products in PEFT's dtype, or in the activation's."""

Precisions: TypeAlias = "dict[tuple[object, ...], Precision | Reason]"

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float64, torch.float32, *HALVES)
_AUTOCASTS = (None, torch.float32, *HALVES)


def precision_of(
    given: torch.dtype,
    autocast: torch.dtype | None,
    weight: torch.dtype,
    lora: torch.dtype,
    stored: bool,
    adapter_precision: AdapterPrecision,
) -> Precision | Reason:
    """The dtypes of a projection, or why they are left to upstream.

    Args:
        given: of the input.
        autocast: of the surrounding autocast region, or None.
        weight: of the weight; for a quantised one that of its products.
        lora: of A and B; of the weight if there is no adapter.
        stored: whether the weight is quantised.
        adapter_precision: see :data:`AdapterPrecision`.
    """
    if weight not in FLOATS or lora not in FLOATS or given not in FLOATS:
        return f"its weight is {weight}, its adapter {lora}, its input {given}"
    decided = (_over_stored if stored else _over_plain)(given, autocast, weight, lora)
    if adapter_precision == "fast" and isinstance(decided, Precision):
        return decided._replace(lora=decided.base)
    return decided


def _over_plain(
    given: torch.dtype, autocast: torch.dtype | None, weight: torch.dtype, lora: torch.dtype
) -> Precision | Reason:
    if autocast is not None:
        # Autocast leaves float64 alone. PEFT casts the input to A's dtype before autocast sees it, so an A in the
        # other half precision would round twice.
        if torch.float64 in (weight, lora, given) or lora not in (torch.float32, weight, autocast):
            return f"autocast to {autocast} over {weight} weights and {lora} adapters"
        if lora in HALVES and lora != autocast:
            return f"autocast to {autocast} over {lora} adapters"
        return Precision(autocast, autocast, autocast, lora)
    if weight != given:
        return f"its weight is {weight}, its input {given}"
    if weight != lora and weight in HALVES and lora in HALVES:
        return f"its weight is {weight}, its adapter {lora}"
    return Precision(weight, lora, weight, lora)


def _over_stored(
    given: torch.dtype, autocast: torch.dtype | None, compute: torch.dtype, lora: torch.dtype
) -> Precision | Reason:
    """Autocast does not touch the products of a quantised weight, and their output has the input's dtype."""
    if autocast is not None:
        # PEFT does not cast the input here, so autocast is what brings it and the adapter together.
        if torch.float64 in (lora, given):
            return f"autocast to {autocast} over {lora} adapters"
        return Precision(compute, autocast, given, given)
    if given != lora and given in HALVES and lora in HALVES:
        return f"its input is {given}, its adapter {lora}"
    return Precision(compute, lora, given, lora)


_CHOICES: tuple[AdapterPrecision, ...] = ("peft", "fast")
PRECISIONS: Precisions = {
    key: precision_of(*key) for key in itertools.product(FLOATS, _AUTOCASTS, FLOATS, FLOATS, (False, True), _CHOICES)
}
"""What :func:`precision_of` says, by its arguments: it is asked for every projection at every call."""
