"""Each verdict, from what the rewriter made of a part and what it made of it before; and what counts as whole or absent."""

from __future__ import annotations

from typing import get_args

import pytest

from patchkit.check.static.verdicts import ABSENT, FAILURES, PartOutcome, Verdict, judge

GONE, LEFT = f"{ABSENT}no class", "line 3: no rule knows it"

OUTCOMES = {
    # rules, reasons: whole, absent
    "whole": (("a",), (), True, False),
    "by two rules": (("a", "b"), (), True, False),
    "partly": (("a",), (LEFT,), False, False),
    "partly, and partly not there": (("a",), (GONE,), False, False),
    "left": ((), (LEFT,), False, False),
    "not there": ((), (GONE,), False, True),
    "not there, twice": ((), (GONE, GONE), False, True),
    "not there and left": ((), (GONE, LEFT), False, False),
    "nothing": ((), (), False, True),
}

VERDICTS: dict[str, tuple[Verdict, Verdict, Verdict]] = {
    # against nothing, against rule a, against rules b and a
    "whole": ("rewritten", "rewritten", "rewritten differently"),
    "by two rules": ("rewritten", "rewritten differently", "rewritten differently"),
    "partly": ("partial", "partial", "rewritten differently"),
    "partly, and partly not there": ("partial", "partial", "rewritten differently"),
    "left": ("unmatched", "drifted", "drifted"),
    "not there": ("absent", "drifted", "drifted"),
    "not there, twice": ("absent", "drifted", "drifted"),
    "not there and left": ("unmatched", "drifted", "drifted"),
    "nothing": ("absent", "drifted", "drifted"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_each_outcome(case: str) -> None:
    rules, reasons, whole, absent = OUTCOMES[case]
    outcome = PartOutcome(rules, reasons)
    assert (outcome.whole, outcome.absent) == (whole, absent)
    assert tuple(judge(outcome, before) for before in ((), ("a",), ("b", "a"))) == VERDICTS[case]


def test_what_needs_a_person() -> None:
    assert set(get_args(Verdict)) - FAILURES == {"rewritten", "partial", "absent"}
