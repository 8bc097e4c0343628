"""patchkit: fused LoRA training for Hugging Face transformers, equal to upstream up to rounding.

    import patchkit
    report = patchkit.apply(model)      # in place; print(report) shows what runs at which level
    patchkit.revert(model)              # exactly the classes it had before
    print(patchkit.estimate(model, tokens=8192))    # what a step will keep and peak at, without running it

    Trainer(..., callbacks=[patchkit.TrainerCallback()])    # applies when training begins

Nothing heavy is imported until one of these is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchkit.collision import message, other_package
from patchkit.version import __version__

if _other := other_package():
    import warnings

    warnings.warn(message(_other), stacklevel=2)

if TYPE_CHECKING:
    from patchkit.api import apply, patched, report, revert
    from patchkit.estimation.estimate import estimate
    from patchkit.estimation.result import Estimate
    from patchkit.reporting import Report
    from patchkit.trainer_callback import TrainerCallback

__all__ = [
    "Estimate",
    "Report",
    "TrainerCallback",
    "__version__",
    "apply",
    "estimate",
    "patched",
    "report",
    "revert",
]


def __getattr__(name: str) -> object:
    """Import the public functions when they are first used (PEP 562)."""
    if name == "Report":
        from patchkit.reporting import Report

        return Report
    if name == "TrainerCallback":
        from patchkit.trainer_callback import TrainerCallback

        return TrainerCallback
    if name == "Estimate":
        from patchkit.estimation.result import Estimate

        return Estimate
    if name == "estimate":
        from patchkit.estimation.estimate import estimate

        return estimate
    if name in __all__:
        from patchkit import api

        return getattr(api, name)
    import difflib

    near = difflib.get_close_matches(name, __all__, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}", name=name)


def __dir__() -> list[str]:
    """The public names, whether they were used already or not."""
    return sorted(__all__)
