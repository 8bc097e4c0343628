"""Rows of the report: the level that each part of a module has, or would have with a given patch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from patchkit.adapters.protocol import Reason
from patchkit.adapters.registry import read_projection
from patchkit.arch.spec import MLP, Attention, Block, GatedMLP, LanguageModel, Part, SharedInput
from patchkit.binding.classes import layer_class, looked_up, patched_class
from patchkit.binding.ownership import replaced_on_instance
from patchkit.binding.patch import Patch, Refusal, replaced_since
from patchkit.planning.row import Row
from patchkit.planning.survey import Candidate
from patchkit.rewrite.rules.registry import rule_named
from patchkit.runtime.before_down import read_dropout
from patchkit.runtime.choice import NO_ADAPTER, NO_GRADIENT, Choice, choose_mlp, choose_shared
from patchkit.runtime.dispatch import displaced
from patchkit.runtime.layers import layer_kind
from patchkit.runtime.levels import Level, Ready, adapted, input_of
from patchkit.runtime.limit import read_limit
from patchkit.runtime.loss import AS_TUPLE, choose_head, gives_tuple, unfit_loss_function
from patchkit.runtime.loss import NO_GRADIENT as NO_GRADIENT_OF_LOSS
from patchkit.runtime.memory import fitting, memory_of

NOT_PATCHED: Reason = "not patched; call patchkit.apply(model)"
NOT_LORA: Reason = "it is trained as a whole (modules_to_save): there is no adapter to fuse"


class _Told(NamedTuple):
    """What a row says of a part; see :class:`~patchkit.planning.row.Row`."""

    level: Level
    reason: Reason
    expected: bool
    memory: str = ""


_FUSED = _Told("fused", "", False)


def rows_of(candidate: Candidate, outcome: Patch | Refusal | None) -> Iterator[Row]:
    """One row for each part of a module; for each group of layers that are rewritten together, where it has such.

    Args:
        candidate: the module.
        outcome: the patch that it has or would get, or why it gets none, or None if none was asked for.
    """
    shown = candidate.place or type(candidate.module).__name__
    if isinstance(candidate.block, SharedInput):
        # What no rule takes together speaks for itself, and so does each layer where there is no patch.
        if not isinstance(outcome, Patch):
            return
        for site in outcome.sites:
            told = _level_in_block(candidate, candidate.block, site.part, outcome, site.calls)
            yield Row(candidate.name, f"{shown}.{', '.join(site.calls)}", site.part, *told[:3], site.calls)
        return
    for part in candidate.parts:
        if part == "norm" and not isinstance(outcome, Patch):  # nobody asks for it any longer
            continue
        told = _level(candidate, part, outcome)
        yield Row(candidate.name, shown, part, *told[:3], memory=told.memory)


def _level(candidate: Candidate, part: Part, outcome: Patch | Refusal | None) -> _Told:
    if outcome is not None and part not in outcome.parts:
        return _Told("upstream", f"switched off ({part}=False)", True)
    if isinstance(candidate.module, ModulesToSaveWrapper):
        return _Told("upstream", NOT_LORA, True)
    if outcome is None:
        return _Told("upstream", _why_not_patched(candidate, part), False)
    if isinstance(outcome, Refusal):
        return _Told("upstream", outcome.why(part), False)
    if candidate.block is None:
        return _level_of_layer(candidate.module, part, outcome)
    return _level_in_block(candidate, candidate.block, part, outcome, candidate.block.projections(part))


def _why_not_patched(candidate: Candidate, part: Part) -> Reason:
    """Why a module has no patched class: another library owns it, its source is not one we rewrite, or nobody asked."""
    owner = replaced_on_instance(candidate.module)
    if owner is not None:
        return owner
    cls, block = type(candidate.module), candidate.block
    possible = layer_class(cls, part) if block is None else patched_class(cls, block, frozenset({part}))
    return possible.why(part) if isinstance(possible, Refusal) else NOT_PATCHED


def _level_of_layer(module: nn.Module, part: Part, patch: Patch) -> _Told:
    owner = replaced_since(patch)
    replaced = replaced_on_instance(module) or (owner and f"its forward was replaced by {owner}")
    if replaced is not None:  # by something that came after apply
        return _Told("upstream", replaced, part == "norm")
    if part == "norm":
        return _FUSED._replace(memory="recompute")
    found = layer_kind(type(module), part).choose(module, _input_of_layer(module, part), patch.precision, None)
    return _Told("upstream", found, found == NO_ADAPTER) if isinstance(found, str) else _FUSED


def _input_of_layer(module: nn.Module, part: Part) -> Tensor:
    """An empty input like those that a layer is made for."""
    if isinstance(module, ParamWrapper):
        weight = module.get_param()
        return torch.empty(0, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    if part != "embedding":
        return _input_like([module])
    base: Any = getattr(module, "base_layer", module)  # PEFT wraps the embedding, loralib's is one
    return torch.empty(0, dtype=torch.int64, device=base.weight.device)


def _level_in_block(candidate: Candidate, block: Block, part: Part, patch: Patch, names: Sequence[str]) -> _Told:
    module = candidate.module
    rules = {site.rule for site in patch.sites if site.part == part}
    if not rules:
        return _Told("upstream", patch.why(part), False)
    # By something that came after apply.
    owner = replaced_on_instance(module) or displaced(type(module), patch.original, patch.forward, looked_up(block))
    if owner is not None:
        return _Told("upstream", owner, False)
    if isinstance(block, LanguageModel):
        return _level_of_loss(module, block, patch)
    choice = _choose(module, block, names, patch, candidate.fed)
    if choice is None:
        return _Told("upstream", "it lacks a projection", False)
    told = _explain(choice, names, whole=any(rule_named(rule).whole for rule in rules), why=patch.why(part))
    return _with_memory(told, patch.memory, choice) if part == "mlp" and told.level == "fused" else told


def _with_memory(told: _Told, asked: str | None, choice: Choice) -> _Told:
    """The same of a fused MLP, with what it does of the option ``memory``."""
    saving = memory_of(asked)
    if asked is None or saving is None:
        return told
    found, why = fitting(saving, choice.readings)
    return told._replace(memory=asked if found == saving else "recompute", reason=why)


def _level_of_loss(module: nn.Module, block: LanguageModel, patch: Patch) -> _Told:
    """What would be chosen in training, for labels that fit."""
    head = getattr(module, block.head, None)
    found = AS_TUPLE if gives_tuple(module) else unfit_loss_function(getattr(module, "loss_function", None))
    if found is None:
        with torch.enable_grad():
            x = _input_like([head] if isinstance(head, nn.Module) else []).requires_grad_()
            ready = choose_head(head, x, patch.precision)
            found = ready if isinstance(ready, str) else None
    return _FUSED if found is None else _Told("upstream", found, found == NO_GRADIENT_OF_LOSS)


def _choose(module: nn.Module, block: Block, names: Sequence[str], patch: Patch, fed: bool) -> Choice | None:
    """What the runtime would choose in training for an input like the ones the block is made for."""
    modules = [part for name in names if isinstance(part := getattr(module, name, None), nn.Module)]
    if len(modules) < len(names):
        return None
    with torch.enable_grad():
        x = _input_like(modules).requires_grad_(fed)
        if isinstance(block, (Attention, SharedInput)):
            return choose_shared(modules, input_of(x, patch.precision))
        assert not isinstance(block, LanguageModel)  # which _level_of_loss is for
        activation = _activation_of(module, block, patch)
        limit = block.limit if isinstance(block, GatedMLP) else None
        return choose_mlp(
            modules[:-1],
            modules[-1],
            activation,
            x,
            input_of(x, patch.precision),
            gated=isinstance(block, GatedMLP),
            limit=None if limit is None else read_limit(getattr(module, limit, None)),
            casts=any(site.casts for site in patch.sites),
            dropout=read_dropout(getattr(module, block.dropout, None) if block.dropout else None, {}),
        )


def _activation_of(module: nn.Module, block: GatedMLP | MLP, patch: Patch) -> object:
    """The activation that a block calls: a module of it, or a function that its source names."""
    if block.activation_function is None:
        return getattr(module, block.activation, None)
    function: Any = patch.forward
    first, *names = block.activation_function.split(".")
    found = inspect.unwrap(function).__globals__.get(first)
    for name in names:
        found = getattr(found, name, None)
    return found


def _input_like(modules: Sequence[nn.Module]) -> Tensor:
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


def _explain(choice: Choice, names: Sequence[str], *, whole: bool, why: str) -> _Told:
    """Level, reason, and whether upstream is where the block belongs."""
    if choice.level == "fused" and whole:
        return _FUSED
    with_adapter = any(isinstance(reading, Ready) and adapted(reading) for reading in choice.readings)
    reasons: dict[str, list[str]] = {}
    for name, reading in zip(names, choice.readings, strict=True):
        if isinstance(reading, str):
            reasons.setdefault(reading, []).append(name)
    text = "; ".join(f"{', '.join(found)}: {reason}" for reason, found in reasons.items())
    text = text or choice.reason or why
    level: Level = "alone" if with_adapter else "upstream"
    return _Told(level, text, choice.reason in (NO_ADAPTER, NO_GRADIENT) and not reasons)
