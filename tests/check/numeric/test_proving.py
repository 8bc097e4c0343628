"""The words in which a trial says what was wrong."""

from __future__ import annotations

import pytest

from patchkit.check.numeric.proving import Trial
from patchkit.testing.checks.base import CheckResult
from patchkit.testing.parity import Findings

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nRuntimeError: {}'


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("another dtype", "another dtype"),
        (TRACEBACK.format("mat1 and mat2"), "RuntimeError: mat1 and mat2"),
        (TRACEBACK.format("mat1 and mat2\n"), "RuntimeError: mat1 and mat2"),
        (TRACEBACK.format("mat1 and mat2\n\n  \n"), "RuntimeError: mat1 and mat2"),
    ],
)
def test_of_a_traceback_the_last_line_that_says_something(problem: str, said: str) -> None:
    assert Trial.fault(CheckResult("forward", "failed", Findings(problems=(problem, "and more")))) == said


def test_other_outcomes() -> None:
    assert Trial.fault(CheckResult("forward", "passed")) == ""
    assert Trial.fault(CheckResult("forward", "inapplicable", reason="no vision tower")) == "no vision tower"
