"""Rows of the report: the level that each part of a module has, or would have with a given patched class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from patchkit.adapters.readers import read_projection
from patchkit.arch.spec import Attention, Block, GatedMLP, Part
from patchkit.binding.classes import looked_up, patched_class
from patchkit.binding.ownership import replaced_on_instance
from patchkit.binding.patch import Patch
from patchkit.module_tree import named_modules, state_of
from patchkit.reporting import Row
from patchkit.rewrite.rules.registry import rule_named
from patchkit.rewrite.sites import Skip
from patchkit.runtime.blocks import NO_ADAPTER, NO_GRADIENT, Choice, choose_mlp, choose_shared
from patchkit.runtime.dispatch import displaced
from patchkit.runtime.levels import Level, Ready, adapted, input_of
from patchkit.runtime.precision import AdapterPrecision

NOT_PATCHED = "not patched; call patchkit.apply(model)"


def describe(
    name: str, module: nn.Module, block: Block, patch: Patch | tuple[Skip, ...] | None, *, fed: bool = True
) -> Iterator[Row]:
    """One row for each part of a module.

    Args:
        name: its qualified name.
        module: the module.
        block: the entry of the architecture file.
        patch: the patch it has or would get, or why it gets none, or None if none was tried.
        fed: whether its input will require a gradient in training, see :func:`fed_with_gradient`.
    """
    module_class = type(module).__name__
    for part in block.parts:
        level, reason, expected = _level(module, block, part, patch, fed)
        yield Row(name, module_class, part, level, reason, expected)


def _level(
    module: nn.Module, block: Block, part: Part, patch: Patch | tuple[Skip, ...] | None, fed: bool
) -> tuple[Level, str, bool]:
    if patch is None:
        return "upstream", _why_not_patched(module, block, part), False
    skips = patch if isinstance(patch, tuple) else patch.skips
    why = "; ".join(skip.reason for skip in skips if skip.part == part)
    if isinstance(patch, tuple):
        return "upstream", why or f"switched off ({part}=False)", not why
    if part not in patch.parts:
        return "upstream", f"switched off ({part}=False)", True
    rules = {site.rule for site in patch.sites if site.part == part}
    if not rules:
        return "upstream", why, False
    # By something that came after apply.
    owner = replaced_on_instance(module) or displaced(type(module), patch.original, patch.forward, looked_up(block))
    if owner is not None:
        return "upstream", owner, False
    if isinstance(block, GatedMLP):
        names: Sequence[str] = (*block.inputs, block.down)
    else:
        names = (block.q, block.k, block.v) if part == "qkv" else (block.o,)
    choice = _choose(module, block, names, patch.precision, fed)
    if choice is None:
        return "upstream", "it lacks a projection", False
    return _explain(choice, names, whole=any(rule_named(rule).whole for rule in rules), why=why)


def _why_not_patched(module: nn.Module, block: Block, part: Part) -> str:
    """Why a block has no patched class: another library owns it, its source is not one we rewrite, or nobody asked."""
    owner = replaced_on_instance(module)
    if owner is not None:
        return owner
    possible = patched_class(type(module), block, frozenset({part}))
    return "; ".join(skip.reason for skip in possible) if isinstance(possible, tuple) else NOT_PATCHED


def _choose(
    module: nn.Module, block: Block, names: Sequence[str], precision: AdapterPrecision, fed: bool
) -> Choice | None:
    """What the runtime would choose in training for an input like the ones the block is made for."""
    modules = [part for name in names if isinstance(part := getattr(module, name, None), nn.Module)]
    if len(modules) < len(names):
        return None
    with torch.enable_grad():
        x = stand_in(modules).requires_grad_(fed)
        if isinstance(block, Attention):
            return choose_shared(modules, input_of(x, precision))
        activation = getattr(module, block.activation, None)
        return choose_mlp(modules[:-1], modules[-1], activation, x, input_of(x, precision))


def fed_with_gradient(model: nn.Module) -> frozenset[int]:
    """Identities of the modules whose input will require a gradient in training, as far as can be told without one.

    What is trained comes before them: modules are registered in the order in which they run, with exceptions (norms)
    that only ever leave one out. ``enable_input_require_grads`` makes it all of them.
    """
    modules = [module for _, module in named_modules(model)]
    if any("_require_grads_hook" in name for module in modules for name in state_of(module)):
        return frozenset(map(id, modules))
    fed, trained = set(), False
    for module in modules:
        if trained:
            fed.add(id(module))
        parameters = state_of(module).get("_parameters", {}).values()
        trained = trained or any(parameter.requires_grad for parameter in parameters if parameter is not None)
    return frozenset(fed)


def stand_in(modules: Sequence[nn.Module]) -> Tensor:
    """An empty input of the width, dtype and device that the projections are made for."""
    for module in modules:
        projection = read_projection(module)
        weight = getattr(module, "weight", None) if isinstance(projection, str) else projection.weight
        if weight is not None and not isinstance(weight, Tensor):
            dtype = weight.compute_dtype(torch.float32)
            return torch.empty(0, weight.shape[1], dtype=dtype, device=weight.device, requires_grad=True)
        if isinstance(weight, Tensor) and weight.is_floating_point():
            features = getattr(module, "in_features", weight.shape[-1])
            return torch.empty(0, features, dtype=weight.dtype, device=weight.device, requires_grad=True)
    # Every projection is one that must be called: the reasons do not depend on the input.
    return torch.empty(0, 0, device="cpu")


def _explain(choice: Choice, names: Sequence[str], *, whole: bool, why: str) -> tuple[Level, str, bool]:
    """Level, reason, and whether upstream is where the block belongs."""
    if choice.level == "fused" and whole:
        return "fused", "", False
    with_adapter = any(isinstance(reading, Ready) and adapted(reading) for reading in choice.readings)
    reasons: dict[str, list[str]] = {}
    for name, reading in zip(names, choice.readings, strict=True):
        if isinstance(reading, str):
            reasons.setdefault(reading, []).append(name)
    text = "; ".join(f"{', '.join(found)}: {reason}" for reason, found in reasons.items())
    text = text or (why if choice.level == "fused" else choice.reason or why)
    level: Level = "linear" if with_adapter else "upstream"
    return level, text, choice.reason in (NO_ADAPTER, NO_GRADIENT) and not reasons
