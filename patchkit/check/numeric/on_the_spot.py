"""Verifying unknown source on the spot: the short form of the parity contract, on tiny instances of these classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import nn

from patchkit.arch.discovery import Found
from patchkit.check.numeric.clean_room import in_clean_room
from patchkit.check.numeric.proving import Trial, prove, subjects_of
from patchkit.check.numeric.tiny_instances import TinyInstance, tiny_instances

SPOT_CHECKS = (
    "forward_backward",
    "eval",
    "no_grad",
    "repeated_backward",
    "ragged_padding",
    "dropout",
    "checkpointing_non_reentrant",
    "bfloat16",
)
"""What is verified, of ``patchkit.testing.CHECKS``. The first one must be applicable."""


def verify_on_the_spot(
    model: nn.Module, classes: Mapping[type[nn.Module], Found]
) -> dict[type[nn.Module], Trial | str]:
    """What tiny instances show of classes, or why nothing can be shown.

    Args:
        model: the model that is to be patched; only its configuration is read.
        classes: unpatched classes, each with a block of the model that is of it.

    Returns:
        For each class a trial that is ``passed`` or ``failed``, or a reason. Nothing that the user has switched on
        sees any of it, and all of it is as before (see :mod:`patchkit.check.numeric.clean_room`).
    """
    return in_clean_room(partial(_verify, model, classes))


def _verify(model: nn.Module, classes: Mapping[type[nn.Module], Found]) -> dict[type[nn.Module], Trial | str]:
    reasons: dict[type[nn.Module], list[str]] = {cls: [] for cls in classes}
    trials: dict[type[nn.Module], Trial | str] = {}
    for cls, found in classes.items():
        if cls in trials:
            continue
        for instance in tiny_instances(model, found, cls):
            if isinstance(instance, str):
                reasons[cls].append(instance)
                continue
            try:
                shown = _prove(instance, classes)
            except Exception as error:  # code that nobody knows runs here, and may raise anything
                reasons[cls].append(f"{type(error).__name__}: {error}")
                continue
            for trial in shown:
                if trial.status == "failed" or (trial.status == "passed" and trial.results[0].passed):
                    trials.setdefault(trial.subject.original, trial)
                else:
                    reasons[trial.subject.original].append(trial.results[0].reason or trial.reason)
            if cls in trials:
                break
    return {
        cls: trials.get(cls) or "; ".join(dict.fromkeys(reasons[cls])) or "there is no tiny model of it"
        for cls in classes
    }


def _prove(instance: TinyInstance, classes: Mapping[type[nn.Module], Found]) -> list[Trial]:
    """Classes of one host are verified together: most often it is one attention and one MLP."""
    subjects = [one for one in subjects_of(instance.model)[0] if one.original in classes]
    return prove(instance.model, instance.inputs, subjects, SPOT_CHECKS)
