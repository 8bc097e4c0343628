"""What is to become of each candidate, blocks and layers alike. One that cannot be looked at is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from patchkit.adapters.protocol import Reason
from patchkit.binding.classes import layer_class, patched_class
from patchkit.binding.ownership import replaced_on_instance
from patchkit.binding.patch import PATCH, Patch, Refusal, patch_of, replaced_since
from patchkit.binding.swap import original_class
from patchkit.errors import MetaModelError, PatchkitError
from patchkit.module_tree import state_of
from patchkit.options import Options
from patchkit.planning.levels import rows_of
from patchkit.planning.row import Row
from patchkit.planning.survey import Candidate, Survey


@dataclass(frozen=True)
class Planned:
    """What is to become of one module.

    Attributes:
        candidate: the module.
        original: its class without patchkit.
        target: the class that it is to have.
        outcome: the patch that comes with that class, or why there is none; None if none was asked for.
        rows: of the report, one for each part.
    """

    candidate: Candidate
    original: type[nn.Module]
    target: type[nn.Module]
    outcome: Patch | Refusal | None
    rows: tuple[Row, ...]

    def refused(self, reason: Reason) -> Planned:
        """The plan to leave the module as it is; one that would not be patched anyway keeps its own reason."""
        if isinstance(self.outcome, Refusal):
            return self
        parts = self.candidate.parts if self.outcome is None else self.outcome.parts
        return _planned(self.candidate, self.original, self.original, Refusal.of(parts, reason))


def plan(survey: Survey, options: Options) -> list[Planned]:
    """The plan for every candidate of a model, with these options.

    Raises:
        MetaModelError: the weights of all blocks are on the ``meta`` device.
        RevertError: a patched module's class was changed by something else since, and other options are asked for.
    """
    _check_loaded(survey)
    return [_examined(candidate, options, _plan) for candidate in survey.candidates]


def current(survey: Survey) -> list[Planned]:
    """What has become of every candidate of a model by now."""
    return [_examined(candidate, Options(), _as_it_is) for candidate in survey.candidates]


def class_changes(plans: Iterable[Planned]) -> list[tuple[nn.Module, type[nn.Module]]]:
    """The modules that are to have another class than they have, with that class."""
    return [(one.candidate.module, one.target) for one in plans if type(one.candidate.module) is not one.target]


def _examined(candidate: Candidate, options: Options, look: Callable[[Candidate, Options], Planned]) -> Planned:
    """A plan; the plan to leave the module alone where looking at it raises.

    Raises:
        PatchkitError: what ``apply`` raises by design.
    """
    try:
        return look(candidate, options)
    except PatchkitError:
        raise
    except Exception as error:
        cls = type(candidate.module)
        wanted = options.parts.intersection(candidate.parts)
        return _planned(candidate, cls, cls, Refusal.of(wanted, _unexaminable(error)))


def _plan(candidate: Candidate, options: Options) -> Planned:
    module, cls, patch = candidate.module, type(candidate.module), patch_of(candidate.module)
    wanted = options.parts.intersection(candidate.parts)
    if candidate.owner is not None:
        return _planned(candidate, cls, cls, Refusal.of(wanted, candidate.owner))
    if patch is not None:
        asked = (wanted, options.precision)
        if (patch.parts, patch.precision) == asked and wanted and replaced_since(patch) is None:
            return _planned(candidate, patch.original, cls, patch)
    original = cls if patch is None else original_class(module, candidate.name)
    owner = replaced_on_instance(module)
    if owner is not None or not wanted:  # swapping the class underneath would do nothing, or worse
        return _planned(candidate, original, original, Refusal.of(wanted, owner or ""))
    if candidate.block is not None:
        target = patched_class(original, candidate.block, wanted, options.precision)
    else:
        (part,) = wanted
        target = layer_class(original, part, options.precision)
    if isinstance(target, Refusal):
        return _planned(candidate, original, original, target)
    return _planned(candidate, original, target, vars(target)[PATCH])


def _as_it_is(candidate: Candidate, _: Options) -> Planned:
    module, patch = candidate.module, patch_of(candidate.module)
    outcome = patch if candidate.owner is None else Refusal.of(candidate.parts, candidate.owner)
    original = type(module) if patch is None else patch.original
    return _planned(candidate, original, type(module), outcome)


def _planned(
    candidate: Candidate, original: type[nn.Module], target: type[nn.Module], outcome: Patch | Refusal | None
) -> Planned:
    """A plan with its rows; if they cannot be told, the module is left alone, since the runtime could not tell more."""
    try:
        return Planned(candidate, original, target, outcome, tuple(rows_of(candidate, outcome)))
    except Exception as error:
        parts = candidate.parts if outcome is None else outcome.parts
        refusal = Refusal.of(parts, _unexaminable(error))
        return Planned(candidate, original, original, refusal, tuple(rows_of(candidate, refusal)))


def _unexaminable(error: Exception) -> Reason:
    """The reason to leave a module that cannot even be looked at: its class may compute, or refuse, anything."""
    return f"it cannot be examined ({type(error).__name__}: {error})"


def _check_loaded(survey: Survey) -> None:
    """Refuse a model on meta, all of it. What an offloading library keeps there it brings back at each call: that runs.

    Raises:
        MetaModelError: all weights of all blocks are there.
    """
    blocks = {one.name for one in survey.candidates if one.block is not None and one.owner is None}
    weights, inside = [], None
    for name, module in survey.modules:
        if name in blocks:
            inside = name
        elif inside is None or (inside and not name.startswith(f"{inside}.")):
            continue
        weights += [weight for weight in state_of(module).get("_parameters", {}).values() if weight is not None]
    offloaded = any("_hf_hook" in state_of(module) for _, module in survey.modules)  # accelerate's name
    if weights and all(weight.is_meta for weight in weights) and not offloaded:
        raise MetaModelError(
            f"the weights of all {len(blocks)} blocks are on the meta device. Load or initialise them first "
            "(from_pretrained, or to_empty and load_state_dict), then call patchkit.apply; nothing was changed."
        )
