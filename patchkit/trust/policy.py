"""Which patched classes ``patchkit.apply`` may bind: those whose source is proven, or verified here and now.

The rewriter refuses what it does not recognise. This closes the hole that is left: upstream code that changed silently
(a new release, remote code, a file edited by hand) in a way that the rewriter takes for the code it knows.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from patchkit.arch.discovery import registered
from patchkit.arch.spec import LanguageModel
from patchkit.binding.patch import Patch
from patchkit.errors import CacheError, PatchkitWarning
from patchkit.trust.key import key_of
from patchkit.trust.ledger import USER_LIMIT, Key, add_proofs, find_proof, user_ledger

if TYPE_CHECKING:
    from torch import nn

    from patchkit.arch.discovery import Found
    from patchkit.check.numeric.proving import Trial
    from patchkit.options import Trust
    from patchkit.planning.plan import Planned
    from patchkit.planning.survey import Candidate

logger = logging.getLogger("patchkit")

# What was verified in this process: the reason for a refusal, or nothing. A cache that cannot be written costs no
# second verification, and a class that differs is not tried again for every model.
_decided: dict[Key, str] = {}


def trusted(model: nn.Module, plans: Iterable[Planned], trust: Trust) -> list[Planned]:
    """The plans, without those for classes whose source is neither proven nor equal when verified here.

    Layers that are patched where they stand keep upstream's ``forward`` around them: nothing of theirs is asked.

    Args:
        model: the model to be patched; nothing in it changes.
        plans: what is to become of its modules.
        trust: see :data:`patchkit.options.Trust`.
    """
    plans = list(plans)
    if trust == "always":
        return plans
    asked = [plan for plan in plans if isinstance(plan.outcome, Patch) and plan.outcome.block is not None]
    refused = _refusals(model, [(plan.candidate.found, plan.original) for plan in asked], trust)
    return [plan.refused(refused[plan.original]) if plan.original in refused else plan for plan in plans]


def refused_before(plans: Iterable[Planned]) -> list[Planned]:
    """The plans, with the reason for those that nobody asked for and whose class was refused in this process."""
    return [
        plan.refused(reason) if plan.outcome is None and (reason := _refusal_of(plan.candidate)) else plan
        for plan in plans
    ]


def _refusals(model: nn.Module, blocks: Iterable[tuple[Found, type[nn.Module]]], trust: Trust) -> dict[type, str]:
    """The classes that must not be bound, each with the reason for the report; of blocks with their unpatched class."""
    refused: dict[type, str] = {}
    unknown: dict[type[nn.Module], tuple[Found, Key]] = {}
    keys: dict[type, Key] = {}
    for found, cls in blocks:
        if cls in refused or (cls in keys and not keys[cls].outside):
            continue
        key = key_of(cls, found.module, found.block)
        if isinstance(key, str):
            refused[cls] = f"it cannot be looked up in the ledger: {key}"
        elif keys.setdefault(cls, key) != key:
            refused[cls] = f"{found.name} has other modules between its projections than others of its class"
        elif find_proof(key) is None:
            unknown.setdefault(cls, (found, key))
    unknown = {cls: one for cls, one in unknown.items() if cls not in refused}
    if trust == "ledger":
        hint = "its source is not in the ledger; trust='verify' verifies it on the spot"
        return refused | dict.fromkeys(unknown, hint)
    undecided = {cls: (found, key) for cls, (found, key) in unknown.items() if key not in _decided}
    refused |= _verify(model, undecided)
    return refused | {cls: _decided[key] for cls, (_, key) in unknown.items() if _decided.get(key)}


def _refusal_of(candidate: Candidate) -> str | None:
    known = _decided and candidate.block is not None
    key = key_of(type(candidate.module), candidate.module, candidate.block) if known else ""
    return None if isinstance(key, str) else _decided.get(key) or None


def _verify(model: nn.Module, unknown: Mapping[type[nn.Module], tuple[Found, Key]]) -> dict[type, str]:
    """Verify classes and remember what was shown. Returns the refusals of those that could not be verified at all."""
    if not unknown:
        return {}
    # The harness: the one import that runs up, and loaded only if there is something to verify.
    from patchkit.check.numeric.loss_on_the_spot import verify_losses_on_the_spot
    from patchkit.check.numeric.on_the_spot import verify_on_the_spot

    start = time.perf_counter()
    found_of = {cls: found for cls, (found, _) in unknown.items()}
    losses = {cls: found for cls, found in found_of.items() if isinstance(found.block, LanguageModel)}
    blocks = {cls: found for cls, found in found_of.items() if cls not in losses}
    trials = verify_on_the_spot(model, blocks) if blocks else {}
    trials |= verify_losses_on_the_spot(model, losses) if losses else {}
    refused: dict[type, str] = {}
    passed: list[Trial] = []
    for cls, (found, key) in unknown.items():
        trial, examine = trials[cls], _examine(found)
        if isinstance(trial, str):
            refused[cls] = (
                f"its source is not in the ledger and could not be verified on the spot ({trial}); "
                f"{examine}trust='always' binds it unproven"
            )
        elif trial.subject.key != key:
            refused[cls] = (
                "its source is not in the ledger and could not be verified on the spot (what is called between the "
                f"projections of {found.name} is not what its constructor puts there); {examine}"
                "trust='always' binds it unproven"
            )
        elif trial.status == "failed":
            _decided[key] = (
                "its source is not in the ledger, and verified on the spot it is not equal to upstream "
                f"({trial.reason})" + (f"; {examine[:-2]}" if examine else "")
            )
        else:
            _decided[key] = ""
            passed.append(trial)
    if passed:
        names = ", ".join(trial.subject.original.__name__ for trial in passed)
        logger.info("patchkit: verified %s on the spot in %.1f s", names, time.perf_counter() - start)
        _remember(passed)
    return refused


def _examine(found: Found) -> str:
    """What examines a class of an architecture that has a file; empty for what is derived."""
    known = registered(type(found.module)) is not None
    return f"`patchkit check --arch {found.architecture.name}` examines it, " if known else ""


def _remember(trials: Iterable[Trial]) -> None:
    try:
        add_proofs(user_ledger(), [trial.proof("spot") for trial in trials], limit=USER_LIMIT)
    except CacheError as error:
        warnings.warn(f"what was verified is not remembered: {error}", PatchkitWarning, stacklevel=2)
