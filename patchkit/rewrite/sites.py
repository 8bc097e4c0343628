"""What a rewrite did, as data: the sites it changed, the blocks it left alone and why, and the new text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from patchkit.arch.spec import Part

RuleName: TypeAlias = str
"""The name of a rule, see :func:`patchkit.rewrite.rules.registry.rules`."""


@dataclass(frozen=True)
class Site:
    """One place that was rewritten.

    Attributes:
        part: the part of the model it belongs to.
        rule: which rule matched.
        line: line of the first call it replaced, 1-based, in the text that was passed in.
        calls: attribute names of the modules it replaced, in the order in which upstream calls them (the order of
            random draws, and of hooks): projections, and for ``gated-mlp`` the activation among them.
        gate_first: for ``gated-mlp`` with a ``gate_up`` projection: whether the first half of its output is the gate.
        casts: for an MLP: whether what its last projection is given is cast to the dtype of that one's weight.
        passed_over: what calls were moved past, see :func:`patchkit.rewrite.passed_over.passed_over`.
    """

    part: Part
    rule: RuleName
    line: int
    calls: tuple[str, ...]
    gate_first: bool = True
    passed_over: tuple[str, ...] = ()
    casts: bool = False


@dataclass(frozen=True)
class Skip:
    """A part of a block, or some of it, that was left as upstream wrote it (or rewritten to a weaker form), and why."""

    part: Part
    reason: str
    line: int | None = None


@dataclass(frozen=True)
class Rewritten:
    """The outcome of rewriting one method of one class.

    Attributes:
        class_name: the class, and ``method`` the method in it that was rewritten.
        source: the whole text that was passed in, with only this method changed.
        method_source: the rewritten method alone, decorators included, at the indentation of ``source``.
        line: line of the method's first line (first decorator, if any) in ``source``.
        sites: what was rewritten, in order of line. Empty if nothing was: then ``source`` is the input, to the byte.
        skips: what was not, and why.
    """

    class_name: str
    method: str
    source: str
    method_source: str
    line: int
    sites: tuple[Site, ...]
    skips: tuple[Skip, ...]
