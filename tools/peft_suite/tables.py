"""The comparison, for people: one row for each test file, then what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tools.peft_suite.outcomes import FUSED, MISSING, Comparison, Outcome

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = ("tests", "passed", "failed", "skipped", "xfailed", "different", "patched", "fused", "fused calls")
_LIMIT = 40


def summary(comparison: Comparison) -> Table:
    """The counts of each file. The columns from passed to xfailed count tests with that result in both runs."""
    from rich.table import Table

    table = Table(title="PEFT's tests, plain and patched", title_justify="left", show_footer=True)
    files: dict[str, Counter[str]] = {}
    different = {one.test for one in comparison.differences}
    patched, fused = set(comparison.patched_tests), set(comparison.fused)
    nothing = Outcome(MISSING)
    for test in sorted({*comparison.plain, *comparison.patched}):
        row = files.setdefault(test.partition("::")[0], Counter())
        row["tests"] += 1
        if test in different:
            row["different"] += 1
        else:
            row[_column(comparison.plain[test].result)] += 1
        row["patched"] += test in patched
        row["fused"] += test in fused
        row["fused calls"] += comparison.patched.get(test, nothing).counts.get(FUSED, 0)
    total = sum(files.values(), Counter())
    table.add_column("file", "total")
    for column in _COLUMNS:
        table.add_column(column, str(total[column]), justify="right")
    for file, row in files.items():
        table.add_row(file.removeprefix("tests/"), *(str(row[column] or "") for column in _COLUMNS))
    table.caption = (
        "passed ... xfailed: in both runs. patched, fused: passed in both runs, and in the patched one had a patched "
        "model, or called a fused function."
    )
    return table


def _column(result: str) -> str:
    return {"error": "failed", "xpassed": "passed"}.get(result, result)


def differences(comparison: Comparison) -> Table:
    """The tests with other results patched: first those that are stable without patchkit."""
    from rich.table import Table

    table = Table(title="different results", title_justify="left", show_lines=True)
    for column in ("test", "plain", "patched", "error"):
        table.add_column(column, overflow="fold")
    for one in sorted(comparison.differences, key=lambda one: one.unstable):
        note = " (unstable without patchkit)" if one.unstable else ""
        table.add_row(one.test, _joined(one.plain) + note, _joined(one.patched), one.error)
    return table


def _joined(results: Iterable[str]) -> str:
    return ", ".join(results)


def failures(comparison: Comparison) -> Table:
    """Why tests fail in both runs: the exceptions of the plain run, the most frequent first."""
    from rich.table import Table

    found = Counter(
        outcome.error_type for outcome in comparison.plain.values() if outcome.result in ("failed", "error")
    )
    table = Table(title="exceptions of the plain run", title_justify="left")
    table.add_column("exception")
    table.add_column("tests", justify="right")
    for error, count in found.most_common(_LIMIT):
        table.add_row(error[:100] or "?", str(count))
    return table
