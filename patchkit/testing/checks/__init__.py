"""The parity contract as a table of checks. Importing this package fills :data:`CHECKS`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

# Importing them registers their checks.
from patchkit.testing.checks import adapters, hooks, inference, lifecycle, precision, training  # noqa: F401
from patchkit.testing.checks.base import (
    CHECKS,
    Case,
    Check,
    CheckResult,
    CheckStatus,
    InapplicableError,
    Patcher,
    Reverter,
    Scenario,
    check,
    scenario,
)
from patchkit.testing.devices import on_device
from patchkit.testing.parity import Inputs

__all__ = [
    "CHECKS",
    "Case",
    "Check",
    "CheckResult",
    "CheckStatus",
    "InapplicableError",
    "Patcher",
    "Reverter",
    "Scenario",
    "check",
    "run_checks",
    "scenario",
]


def run_checks(
    model: nn.Module,
    inputs: Inputs,
    patch: Patcher | None = None,
    *,
    revert: Reverter | None = None,
    names: Iterable[str] | None = None,
    device: str | torch.device | None = None,
) -> list[CheckResult]:
    """Run the checks of these names, by default all, in the order of :data:`CHECKS`. None stops another.

    Args:
        model: unpatched; left as it is.
        inputs: keyword arguments of its ``forward``, with ``labels``.
        patch: default :func:`patchkit.apply`.
        revert: default :func:`patchkit.revert` if ``patch`` is the default, else none.
        names: keys of :data:`CHECKS`.
        device: where both sides run, as torch names it; by default where the model is. Its copies, the inputs, the
            random draws and autocast are of that device.

    Raises:
        ValueError: a name is unknown.
        DeviceError: there is no such device.
    """
    wanted = set(CHECKS) if names is None else set(names)
    unknown = wanted - set(CHECKS)
    if unknown:
        raise ValueError(f"unknown checks {', '.join(sorted(unknown))}; known: {', '.join(CHECKS)}")
    if device is not None:
        model, inputs = on_device(model, inputs, device)
    return [chosen(model, inputs, patch, revert=revert) for name, chosen in CHECKS.items() if name in wanted]
