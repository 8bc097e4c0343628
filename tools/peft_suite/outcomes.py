"""What became of each test in a run, and how two runs compare."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

MISSING = "missing"
"""The result of a test that the other run has, and this one has not."""

MODELS, BLOCKS, FUSED, REFUSED = "models patched", "blocks patched", "fused calls", "models on meta"
"""What is counted in each test of a patched run: see :func:`tools.peft_suite.injection.inject`."""


@dataclass(frozen=True)
class Outcome:
    """One test in one run.

    Attributes:
        result: ``passed``, ``failed``, ``error`` (set-up, tear-down or import), ``skipped``, ``xfailed``, ``xpassed``,
            or :data:`MISSING`.
        error: the last line of a failure, or the reason of a skip.
        counts: how much there was of :data:`MODELS` and the others; empty in a plain run.
    """

    result: str
    error: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def error_type(self) -> str:
        """The class of the exception; empty where there is none, or pytest's message does not begin with one."""
        if self.result not in ("failed", "error"):
            return ""
        # Of a bare `assert`, pytest leaves out the class and writes what was compared, addresses included.
        text = self.error.strip()
        named = re.match(r"([A-Za-z_][\w.]*)(?::|$)", text)
        return "AssertionError" if text.startswith("assert ") else named[1] if named else ""


Run = Mapping[str, Outcome]
"""The outcome of each test, by its pytest node id."""


@dataclass(frozen=True)
class Difference:
    """A test with other results patched than plain.

    Attributes:
        test: its node id.
        plain: results of the plain runs, the first one first.
        patched: likewise.
        error: of the first patched run.
    """

    test: str
    plain: tuple[str, ...]
    patched: tuple[str, ...]
    error: str

    @property
    def unstable(self) -> bool:
        """Whether the test does not even agree with itself, plain."""
        return len(set(self.plain)) > 1


@dataclass(frozen=True)
class Comparison:
    """Two runs of one suite, plain and patched.

    Attributes:
        plain: the outcomes without patchkit.
        patched: the outcomes with it.
        differences: tests with other results patched, in the order of their names; unstable ones included.
    """

    plain: Run
    patched: Run
    differences: tuple[Difference, ...]

    @property
    def faults(self) -> tuple[Difference, ...]:
        """The differences of tests that are stable without patchkit."""
        return tuple(one for one in self.differences if not one.unstable)

    @property
    def results(self) -> Counter[str]:
        """How many tests have each result in both runs."""
        return Counter(
            outcome.result for test, outcome in self.plain.items() if outcome.result == _of(self.patched, test).result
        )

    @property
    def patched_tests(self) -> tuple[str, ...]:
        """The tests that made a model with patched blocks and passed in both runs."""
        return self._passed_with(MODELS)

    @property
    def fused(self) -> tuple[str, ...]:
        """The tests that called a fused function and passed in both runs: those that prove something."""
        return self._passed_with(FUSED)

    def _passed_with(self, count: str) -> tuple[str, ...]:
        return tuple(
            test
            for test, outcome in self.patched.items()
            if outcome.counts.get(count) and outcome.result == "passed" == _of(self.plain, test).result
        )

    @property
    def other_errors(self) -> tuple[str, ...]:
        """Tests that fail in both runs, with exceptions of two classes."""
        return tuple(
            test
            for test, outcome in self.plain.items()
            if outcome.result == _of(self.patched, test).result
            and outcome.error_type != _of(self.patched, test).error_type
        )

    @property
    def counts(self) -> Counter[str]:
        """The sums of what was counted."""
        total: Counter[str] = Counter()
        for outcome in self.patched.values():
            total.update(outcome.counts)
        return total


def _of(run: Run, test: str) -> Outcome:
    return run.get(test, Outcome(MISSING))


def differing(plain: Run, patched: Run) -> tuple[str, ...]:
    """The tests whose results differ, in the order of their names."""
    tests = sorted({*plain, *patched})
    return tuple(test for test in tests if _of(plain, test).result != _of(patched, test).result)


def compare(plain: Run, patched: Run, repeats: Sequence[tuple[Run, Run]] = ()) -> Comparison:
    """Compare two runs test by test.

    Args:
        plain: without patchkit.
        patched: with it.
        repeats: further runs of the tests that differ, as (plain, patched). They never make a difference go away:
            they tell a test that fails because of patchkit from one that is unstable without it.
    """
    differences = []
    for test in differing(plain, patched):
        plain_results = (_of(plain, test).result, *(_of(run, test).result for run, _ in repeats))
        patched_results = (_of(patched, test).result, *(_of(run, test).result for _, run in repeats))
        error = _of(patched, test).error or _of(plain, test).error
        differences.append(Difference(test, plain_results, patched_results, error))
    return Comparison(plain, patched, tuple(differences))


def write(run: Run, path: Path) -> None:
    """Write a run as JSON."""
    path.write_text(json.dumps({test: asdict(outcome) for test, outcome in run.items()}))


def read(path: Path) -> dict[str, Outcome]:
    """Reads what :func:`write` wrote."""
    return {test: Outcome(**values) for test, values in json.loads(path.read_text()).items()}
