"""What is to become of each block and layer of a model. One that cannot be looked at is left alone, with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from patchkit.arch.discovery import Found
from patchkit.arch.spec import Part
from patchkit.binding.classes import patched_class
from patchkit.binding.ownership import replaced_on_instance
from patchkit.binding.patch import PATCH, Patch, patch_of, replaced_since
from patchkit.binding.swap import original_class
from patchkit.describe import describe
from patchkit.errors import PatchkitError
from patchkit.layers import Layer, PlannedLayer, describe_layer, plan_layer
from patchkit.reporting import Row
from patchkit.rewrite.sites import Skip
from patchkit.runtime.precision import AdapterPrecision


class Planned(NamedTuple):
    """What is to become of one recognised module."""

    found: Found
    original: type[nn.Module]
    target: type[nn.Module]
    patch: Patch | tuple[Skip, ...]


def plan_block(found: Found, parts: frozenset[Part], precision: AdapterPrecision) -> Planned:
    """The plan for a module; that to leave it alone where looking at it raises.

    Raises:
        PatchkitError: what ``apply`` raises by design.
    """
    try:
        return _plan(found, parts, precision)
    except PatchkitError:
        raise
    except Exception as error:
        cls = type(found.module)
        return Planned(found, cls, cls, skips_of(parts & frozenset(found.block.parts), _unexaminable(error)))


def plan_layer_or_leave(layer: Layer, precision: AdapterPrecision, *, wanted: bool) -> PlannedLayer:
    """Like :func:`plan_block`, for a layer."""
    try:
        return plan_layer(layer, precision, wanted=wanted)
    except PatchkitError:
        raise
    except Exception as error:
        return PlannedLayer(layer.module, type(layer.module), describe_layer(layer, _unexaminable(error)))


def describe_plan(plan: Planned, parts: frozenset[Part], *, fed: bool) -> tuple[Planned, list[Row]]:
    """The rows of a plan; if they cannot be told, the plan is dropped, since the runtime could not tell more.

    Args:
        plan: the plan.
        parts: what the rows are of.
        fed: see :func:`patchkit.describe.describe`.
    """
    found = plan.found
    try:
        return plan, list(describe(found.name, found.module, found.block, plan.patch, fed=fed))
    except Exception as error:
        skips = skips_of(parts & frozenset(found.block.parts), _unexaminable(error))
        plan = plan._replace(target=plan.original, patch=skips)
        return plan, list(describe(found.name, found.module, found.block, skips))


def describe_block(
    found: Found, patch: Patch | tuple[Skip, ...] | None, parts: frozenset[Part], *, fed: bool = True
) -> list[Row]:
    """The rows of a block as it is, or one for each of these parts that says why they cannot be told."""
    try:
        return list(describe(found.name, found.module, found.block, patch, fed=fed))
    except Exception as error:
        skips = skips_of(parts & frozenset(found.block.parts), _unexaminable(error))
        return list(describe(found.name, found.module, found.block, skips))


def describe_layer_now(layer: Layer) -> Row:
    """The row of a layer as it is, or one that says why it cannot be told."""
    try:
        return describe_layer(layer, None if patch_of(layer.module) is None else type(layer.module))
    except Exception as error:
        return describe_layer(layer, _unexaminable(error))


def _plan(found: Found, parts: frozenset[Part], precision: AdapterPrecision) -> Planned:
    cls = type(found.module)
    patch = patch_of(found.module)
    asked = (parts & frozenset(found.block.parts), precision)
    if patch is not None and (patch.parts, patch.precision) == asked and replaced_since(patch) is None:
        return Planned(found, patch.original, cls, patch)
    original = original_class(found.module, found.name) if patch is not None else cls
    owner = replaced_on_instance(found.module)
    if owner is not None:  # swapping the class underneath would do nothing, or worse
        return Planned(found, original, original, skips_of(parts, owner))
    target = patched_class(original, found.block, parts, precision)
    if isinstance(target, tuple):
        return Planned(found, original, original, target)
    return Planned(found, original, target, vars(target)[PATCH])


def refuse(plan: Planned, reason: str) -> Planned:
    """The plan to leave a block as it is; one that could not be patched anyway keeps its own reason."""
    if not isinstance(plan.patch, Patch):
        return plan
    parts = [part for part in plan.found.block.parts if part in plan.patch.parts]
    return plan._replace(target=plan.original, patch=skips_of(parts, reason))


def skips_of(parts: Iterable[Part], reason: str) -> tuple[Skip, ...]:
    """One reason for all of these parts."""
    return tuple(Skip(part, reason) for part in sorted(parts))


def _unexaminable(error: Exception) -> str:
    """The reason to leave a module that cannot even be looked at: its class may compute, or refuse, anything."""
    return f"it cannot be examined ({type(error).__name__}: {error})"
