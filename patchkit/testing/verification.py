"""The test of an architecture, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from patchkit.arch.spec import Architecture
    from patchkit.check.architecture.verification import Verification
    from patchkit.testing.parity import Inputs


def verify_architecture(
    architecture: Architecture | str, model: nn.Module | None = None, inputs: Inputs | None = None
) -> Verification:
    """Make sure that every block of an architecture is rewritten, and that the patched model equals the unpatched one.

    The source that is installed is read and rewritten, and compared with what its structure says. Tiny models are then
    put through the checks of ``patchkit check``: forward and backward, dropout, checkpointing, generation, low
    precision, and so on. Takes about ten seconds. Nothing is remembered of it.

    Args:
        architecture: its name, as ``patchkit archs`` lists it, or the description itself, which need not be installed.
        model: a small model with its blocks, without adapters. Only its structure is looked at: a copy gets weights of
            its own. By default tiny models of the architecture's model types, or of its ``model``.
        inputs: keyword arguments of that model's ``forward``; by default those that a transformers model takes.

    Returns:
        What was found, for ``print``.

    Raises:
        ArchitectureError: something is amiss; an ``AssertionError`` whose message has all that was found.
        PatchkitError: there is no such architecture, or its package is not installed.
    """
    from patchkit.check.architecture.verification import verification  # the harness and the check above it

    found = verification(architecture, model, inputs)
    found.require()
    return found
