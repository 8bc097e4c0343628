"""What is to become of each candidate, blocks and layers alike. One that cannot be looked at is left alone.

Blocks come first. A layer of a block is patched where it stands only if its block does not hold it, which is known when
every block is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from patchkit.adapters.protocol import Reason
from patchkit.arch.spec import Part, SharedInput
from patchkit.binding.classes import layer_class, patched_class
from patchkit.binding.norms import norm_class
from patchkit.binding.ownership import replaced_on_instance
from patchkit.binding.patch import Patch, Refusal, patch_of, replaced_since
from patchkit.binding.swap import original_class
from patchkit.errors import MetaModelError, PatchkitError
from patchkit.module_tree import PATCH, state_of
from patchkit.options import Options
from patchkit.planning.language_models import language_models
from patchkit.planning.levels import rows_of
from patchkit.planning.norms import norms
from patchkit.planning.row import Row
from patchkit.planning.survey import Candidate, Place, Survey
from patchkit.rewrite.rules.registry import rule_named


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
    """The plan for every block of a model, with these options; and for its loss, if that is asked for.

    Raises:
        MetaModelError: the weights of all blocks are on the ``meta`` device; of all adapted layers, where no block is.
        RevertError: a patched module's class was changed by something else since, and other options are asked for.
    """
    _check_loaded(survey)
    losses = language_models(survey, asked=options.loss)
    candidates = [*filter(_is_block, survey.blocks), *losses]
    return [_examined(candidate, options, _plan) for candidate in candidates]


def current(survey: Survey) -> list[Planned]:
    """What has become of every block of a model by now, and of its loss if that was asked for."""
    candidates = [*filter(_is_block, survey.blocks), *language_models(survey, asked=False)]
    return [_examined(candidate, Options(), _as_it_is) for candidate in candidates]


def with_layers(survey: Survey, blocks: Sequence[Planned], options: Options) -> list[Planned]:
    """The plans for the blocks of a model, for its adapted layers that none of these holds, and for its norms.

    Args:
        survey: the model.
        blocks: what is to become of its blocks, for good.
        options: those of ``apply``.

    Raises:
        RevertError: as :func:`plan`.
    """
    nothing = replace(options, linear=False)
    known = {block.candidate.name: block for block in blocks}

    def look(layer: Candidate) -> Planned:
        place = survey.places.get(layer.name)
        held = place is not None and place.block in known and _holds(known[place.block], place)
        return _examined(layer, nothing if held else options, _plan)

    others = [_examined(norm, options, _plan) for norm in norms(survey, asked="norm" in options.parts)]
    return [*_together(survey, blocks, [look(layer) for layer in survey.layers]), *others]


def with_current_layers(survey: Survey, blocks: Sequence[Planned]) -> list[Planned]:
    """What has become of a model's blocks by now, of its adapted layers that none of these holds, and of its norms."""
    others = [_examined(norm, Options(), _as_it_is) for norm in norms(survey, asked=False)]
    return [*_together(survey, blocks, [_examined(layer, Options(), _as_it_is) for layer in survey.layers]), *others]


def _holds(block: Planned, place: Place) -> bool:
    """Whether a block is to call a projection itself, or is to be left as it is with all in it."""
    outcome = block.outcome
    if outcome is None or place.part not in outcome.parts:  # switched off
        return True
    return isinstance(outcome, Patch) and any(place.attribute in site.calls for site in outcome.sites)


def _together(survey: Survey, blocks: Sequence[Planned], layers: Sequence[Planned]) -> list[Planned]:
    """All plans; the rows of a block speak for the layers in it."""
    alone: set[tuple[str, Part]] = set()
    known = {block.candidate.name: block for block in blocks}
    shown = []
    for layer in layers:
        place = survey.places.get(layer.candidate.name)
        if place is None or place.block not in known:
            shown.append(layer)
            continue
        if not _speaks_for(known[place.block], place):
            shown.append(replace(layer, rows=tuple(_by_itself(row, known[place.block]) for row in layer.rows)))
            continue
        if any(row.level == "fused" for row in layer.rows):
            alone.add((place.block, place.part))
        shown.append(replace(layer, rows=()))

    def told(row: Row) -> Row:
        lifted = row.level == "upstream" and (row.name, row.part) in alone
        return replace(row, level="alone") if lifted else row

    return [*(replace(block, rows=tuple(map(told, block.rows))) for block in blocks), *shown]


def _speaks_for(block: Planned, place: Place) -> bool:
    """Whether the rows of a block are about a projection: not where it only could share its input with others."""
    if not isinstance(block.candidate.block, SharedInput):
        return True
    return isinstance(block.outcome, Patch) and _holds(block, place)


def _by_itself(row: Row, block: Planned) -> Row:
    """The row of a layer that is not computed with those that read the same variable, with the reason."""
    why = block.outcome.why(row.part) if isinstance(block.outcome, Refusal) else ""
    return replace(row, reason=f"by itself: {why}") if why and row.level == "fused" else row


def _is_block(candidate: Candidate) -> bool:
    """Whether a candidate counts: what is derived from a source does if a rule takes all of some part of it.

    Otherwise its layers are layers like any other. Options do not matter: what is switched off stays as it is.
    """
    if not candidate.derived or patch_of(candidate.module) is not None:
        return True
    assert candidate.block is not None
    try:
        made = patched_class(type(candidate.module), candidate.block, frozenset(candidate.block.parts))
    except Exception:  # as for any block, the plan says that it cannot be examined
        return True
    return not isinstance(made, Refusal) and any(rule_named(site.rule).whole for site in vars(made)[PATCH].sites)


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
        asked = (wanted, options.precision, options.memory_of(wanted))
        if (patch.parts, patch.precision, patch.memory) == asked and wanted and replaced_since(patch) is None:
            return _planned(candidate, patch.original, cls, patch)
    original = cls if patch is None else original_class(module, candidate.name)
    owner = replaced_on_instance(module)
    if owner is not None or not wanted:  # swapping the class underneath would do nothing, or worse
        return _planned(candidate, original, original, Refusal.of(wanted, owner or ""))
    if candidate.block is not None:
        target = patched_class(original, candidate.block, wanted, options.precision, options.memory_of(wanted))
    else:
        (part,) = wanted
        asked_for = (options.precision, options.memory)
        target = norm_class(original, *asked_for) if part == "norm" else layer_class(original, part, options.precision)
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
        MetaModelError: all weights of all blocks are there; of all adapted layers, where no block is.
    """
    blocks = {one.name for one in survey.blocks if one.owner is None}
    candidates = blocks or {one.name for one in survey.layers}
    weights, inside = [], None
    for name, module in survey.modules:
        if name in candidates:
            inside = name
        elif inside is None or (inside and not name.startswith(f"{inside}.")):
            continue
        weights += [weight for weight in state_of(module).get("_parameters", {}).values() if weight is not None]
    offloaded = any("_hf_hook" in state_of(module) for _, module in survey.modules)  # accelerate's name
    if weights and all(weight.is_meta for weight in weights) and not offloaded:
        raise MetaModelError(
            f"the weights of all {len(candidates)} {'blocks' if blocks else 'adapted layers'} are on the meta device. "
            "Load or initialise them first "
            "(from_pretrained, or to_empty and load_state_dict), then call patchkit.apply; nothing was changed."
        )
