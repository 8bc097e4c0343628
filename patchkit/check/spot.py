"""Verifying unknown source on the spot: the short form of the parity contract, on tiny instances of these classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from patchkit.arch.discovery import Found
from patchkit.check.proving import Verdict, prove, subjects_of
from patchkit.check.tiny_instances import tiny_instances

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
) -> dict[type[nn.Module], Verdict | str]:
    """What tiny instances show of classes, or why nothing can be shown.

    Args:
        model: the model that is to be patched; only its configuration is read.
        classes: unpatched classes, each with a block of the model that is of it.

    Returns:
        For each class a verdict that is ``passed`` or ``failed``, or a reason. Random state, and whether gradients are
        recorded here, stay as they are.
    """
    with _undisturbed():
        return _verify(model, classes)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """On the CPU, with gradients, whatever the user has switched on; and without upstream's warnings."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.device("cpu"),
    ):
        warnings.simplefilter("ignore")
        yield


def _verify(model: nn.Module, classes: Mapping[type[nn.Module], Found]) -> dict[type[nn.Module], Verdict | str]:
    reasons: dict[type[nn.Module], list[str]] = {cls: [] for cls in classes}
    verdicts: dict[type[nn.Module], Verdict | str] = {}
    for cls, found in classes.items():
        if cls in verdicts:
            continue
        for instance in tiny_instances(model, found, cls):
            if isinstance(instance, str):
                reasons[cls].append(instance)
                continue
            # Classes of one host are verified together: most often it is one attention and one MLP.
            subjects = [one for one in subjects_of(instance.model)[0] if one.original in classes]
            for verdict in prove(instance.model, instance.inputs, subjects, SPOT_CHECKS):
                if verdict.status == "failed" or (verdict.status == "passed" and verdict.results[0].passed):
                    verdicts.setdefault(verdict.subject.original, verdict)
                else:
                    reasons[verdict.subject.original].append(verdict.results[0].reason or verdict.reason)
            if cls in verdicts:
                break
    return {
        cls: verdicts.get(cls) or "; ".join(dict.fromkeys(reasons[cls])) or "there is no tiny model of it"
        for cls in classes
    }
