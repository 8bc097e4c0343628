"""The record on a patched class: how it came about."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from patchkit.adapters.formula import name_of
from patchkit.adapters.protocol import Reason
from patchkit.arch.spec import Block, Part
from patchkit.module_tree import PATCH
from patchkit.rewrite.sites import Site, Skip
from patchkit.runtime.precision import AdapterPrecision


@dataclass(frozen=True)
class Patch:
    """How a patched class came about.

    Attributes:
        original: the upstream class, which ``revert`` gives back.
        block: the entry of the architecture file; None for a layer that is patched where it stands.
        parts: the parts of the model that were asked for.
        precision: in which the adapters compute.
        memory: how an MLP, a norm or a loss of it saves memory; None where it has none, or nothing is asked for.
        forward: ``forward`` as the upstream class had it.
        sites: what was rewritten.
        skips: what was not, and why.
    """

    original: type[nn.Module]
    block: Block | None
    parts: frozenset[Part]
    precision: AdapterPrecision
    memory: str | None
    forward: object
    sites: tuple[Site, ...]
    skips: tuple[Skip, ...]

    def why(self, part: Part) -> Reason:
        """Why something of a part was left as it was; empty if nothing was."""
        return _reasons(self.skips, part)


@dataclass(frozen=True)
class Refusal:
    """Why a module keeps the class that it has.

    Attributes:
        parts: the parts of the model that were asked for.
        skips: the reasons, at least one for each of them.
    """

    parts: frozenset[Part]
    skips: tuple[Skip, ...]

    @classmethod
    def of(cls, parts: Iterable[Part], reason: Reason) -> Refusal:
        """One reason for all of these parts."""
        wanted = frozenset(parts)
        return cls(wanted, tuple(Skip(part, reason) for part in sorted(wanted)))

    def why(self, part: Part) -> Reason:
        """The reasons for a part, in one line."""
        return _reasons(self.skips, part)


def _reasons(skips: Iterable[Skip], part: Part) -> Reason:
    return "; ".join(skip.reason for skip in skips if skip.part == part)


def patch_of(module: nn.Module) -> Patch | None:
    """The patch of a patched module, or None."""
    return getattr(type(module), PATCH, None)


def type_of_patch(module: nn.Module) -> type[nn.Module]:
    """The patched class in a module's MRO (the module's class itself, unless something subclassed it since)."""
    return next(cls for cls in type(module).__mro__ if PATCH in vars(cls))


def replaced_since(patch: Patch) -> str | None:
    """The name of what replaced ``forward`` on the upstream class since the patch was made; None if nothing did.

    The patched class defines its own ``forward``, so such a replacement does not run until ``apply`` is called again.
    """
    current = inspect.getattr_static(patch.original, "forward")
    return None if current is patch.forward else name_of(current)
