"""The choice of level of a part of a block, or of one layer, for one call: see :mod:`patchkit.runtime.levels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchkit.adapters.protocol import Reason, quick
from patchkit.runtime.activations import read_activation, unfit_activation
from patchkit.runtime.levels import Input, Level, Ready, adapted, common_precision, examine
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.ops.activations import Activation

NO_ADAPTER: Reason = "no active LoRA adapter"
NO_GRADIENT: Reason = "no adapter and no gradient: nothing to save"


class Choice(NamedTuple):
    """The level of a block for one call.

    Attributes:
        level: see :mod:`patchkit.runtime.levels`.
        readings: what was found of each projection, in the order of its names.
        precision: of the fused function, if ``level`` is fused.
        reason: why the block is not fused, where that is not the reason of a projection.
        activation: of an MLP, if it is one that is fused.
        dropout: of an MLP: the probability with which an element of what its down projection is given is zeroed.
        limit: of an MLP: by what gate and up are clamped; None for nothing.
    """

    level: Level
    readings: tuple[Ready | Reason, ...]
    precision: Precision | None = None
    reason: Reason | None = None
    activation: Activation | None = None
    dropout: float = 0.0
    limit: float | None = None


def choose_shared(modules: Sequence[nn.Module], given: Input | Reason) -> Choice:
    """The level of projections that read the same input (q, k and v, or one alone)."""
    if isinstance(given, str):
        return Choice("upstream", (given,) * len(modules))
    readings, precision, with_adapter = _examine_all(modules, given)
    if not with_adapter:
        return quick(Choice, ("upstream", readings, None, NO_ADAPTER, None, 0.0, None))
    if precision is None:
        found = common_precision(readings)
        if isinstance(found, str):
            return Choice("alone", readings, reason=found)
        precision = found
    return quick(Choice, ("fused", readings, precision, None, None, 0.0, None))


def choose_mlp(
    inputs: Sequence[nn.Module],
    down: nn.Module,
    activation: object,
    x: Tensor,
    given: Input | Reason,
    *,
    gated: bool = True,
    dropout: float | Reason = 0.0,
    casts: bool = False,
    limit: float | Reason | None = None,
) -> Choice:
    """The level of an MLP; if it has no gate, ``inputs`` is its up projection alone.

    ``dropout`` is the probability of what stands before the down projection, or why that must be called; ``casts``
    whether its input is cast to the dtype of its weight; ``limit`` that of gate and up, or why they must be clamped.
    """
    if isinstance(given, str):
        return Choice("upstream", (given,) * (len(inputs) + 1))
    readings, precision, with_adapter = _examine_all(inputs, given)
    # Down reads what gate and up yield, one joint projection both of them.
    shared = 2 if gated else 1
    dtype, width, same_width = given.dtype, 0, True
    for reading in readings:
        if type(reading) is Ready:
            own = reading.projection.weight.shape[0] * len(inputs) // shared
            same_width = same_width and width in (0, own)
            dtype, width = reading.precision.output, own
    features = width if width and same_width else _in_features(down)
    _, _, *others = given  # and no slice, which torch.compile of torch 2.8 cannot take of a named tuple
    last = examine(down, quick(Input, (features, dtype, *others)))
    readings += (last,)
    with_adapter = with_adapter or (type(last) is Ready and adapted(last))
    found = precision if type(last) is Ready and last.precision is precision else common_precision(readings)
    name = read_activation(activation)
    level: Level = "alone" if with_adapter else "upstream"
    if isinstance(found, str):
        return Choice(level, readings, reason=found)
    if not same_width:
        return Choice(level, readings, reason="gate and up differ in width")
    if name is None:
        why = unfit_activation(activation)
        return Choice(level, readings, reason=f"activation {type(activation).__qualname__}: {why}")
    if casts and getattr(getattr(down, "weight", None), "dtype", None) != dtype:
        return Choice(level, readings, reason="the down projection's weight is of another dtype than its input")
    if isinstance(dropout, str):
        return Choice(level, readings, reason=f"dropout before the down projection: {dropout}")
    if isinstance(limit, str):
        return Choice(level, readings, reason=f"clamp of gate and up: {limit}")
    if not with_adapter and not _wants_gradient(x, readings):
        return Choice("upstream", readings, reason=NO_GRADIENT)
    return quick(Choice, ("fused", readings, found, None, name, dropout, limit))


def _in_features(module: nn.Module) -> int:
    name = "in_features" if hasattr(module, "in_features") else "in_dim"  # the latter is torchtune's
    found: int = getattr(module, name, -1)
    return found


def _examine_all(
    modules: Sequence[nn.Module], given: Input
) -> tuple[tuple[Ready | Reason, ...], Precision | None, bool]:
    """What is found of each, the precision of them all, and whether any has an adapter.

    The precision is None where they do not all have the same one at once, and :func:`common_precision` decides. In one
    look at each: they agree at most calls.
    """
    readings: list[Ready | Reason] = []
    common: Precision | None = None
    agreed, with_adapter = True, False
    for module in modules:
        reading = examine(module, given)
        readings.append(reading)
        if type(reading) is not Ready:
            agreed = False
            continue
        projection, precision = reading
        if projection.adapters:
            with_adapter = True
        if common is None:
            common = precision
        elif precision is not common:
            agreed = False
    return tuple(readings), common if agreed else None, with_adapter


def _wants_gradient(x: Tensor, readings: Sequence[Ready | Reason]) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad
        or any(isinstance(reading, Ready) and _trained(reading.projection.weight) for reading in readings)
    )


def _trained(weight: object) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad
