"""What the rewriter made of one part of a class, and the verdict on it against an earlier release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patchkit.rewrite.sites import RuleName

Verdict = Literal["rewritten", "partial", "absent", "rewritten differently", "drifted", "unmatched"]
"""What a part of a class is in a release, against the last earlier release in which it was rewritten at all.

* ``rewritten``: whole, by the same rule as then;
* ``partial``: only some of its calls, or each alone, as then;
* ``absent``: the release has no such model, class or call, and none was known;
* ``rewritten differently``: by another rule than then;
* ``drifted``: rewritten then, no longer;
* ``unmatched``: it is there, and no rule knows it; none did before.
"""

FAILURES: frozenset[Verdict] = frozenset({"rewritten differently", "drifted", "unmatched"})
"""Verdicts that need a person, unless the numeric stage proves them."""

ABSENT = "absent: "
"""How the reason of the rewriter begins where there is nothing to rewrite."""


@dataclass(frozen=True)
class PartOutcome:
    """What the rewriter made of one part (q/k/v, o or MLP) of one class.

    Attributes:
        rules: the rule of every place that it rewrote, in the order of the text.
        reasons: why something was left, or rewritten to a weaker form.
    """

    rules: tuple[RuleName, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether everything was rewritten."""
        return bool(self.rules) and not self.reasons

    @property
    def absent(self) -> bool:
        """Whether there was nothing to rewrite."""
        return not self.rules and all(reason.startswith(ABSENT) for reason in self.reasons)


def judge(outcome: PartOutcome, before: tuple[RuleName, ...]) -> Verdict:
    """The verdict on one part.

    Args:
        outcome: what the rewriter made of it.
        before: the rules of the last earlier release in which it was rewritten at all; empty if there is none.
    """
    if not outcome.rules:
        return "drifted" if before else "absent" if outcome.absent else "unmatched"
    if before and outcome.rules != before:
        return "rewritten differently"
    return "rewritten" if outcome.whole else "partial"
