"""The result of ``patchkit check --peft``: one entry for each reader of each release of PEFT, and what was run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from patchkit.adapters.peft_known import ReaderProof
from patchkit.check.numeric.reader_outcomes import ReaderOutcome
from patchkit.check.static.peft_layers import Change, ReaderFinding
from patchkit.escaping import one_line
from patchkit.upstream.release import Release

ReaderVerdict = Literal["known", "changed", "absent", "unreadable"]

READER_MEANINGS: Mapping[ReaderVerdict, str] = {
    "known": "its text is one that is proven",
    "changed": "its text is another than any that is proven: upstream's code runs until it is",
    "absent": "the release has no such layer",
    "unreadable": "its text cannot be read: upstream's code runs",
}
"""What each verdict means for the user."""


@dataclass(frozen=True)
class ReaderEntry:
    """One reader in one release.

    Attributes:
        release: of PEFT.
        finding: what it relies on there.
        verdict: of the static stage.
        since: the recorded release that it was compared with; empty if there is none.
        changes: what is otherwise than there.
        proof: of this very text, from before or from this run; None if there is none.
    """

    release: Release
    finding: ReaderFinding
    verdict: ReaderVerdict
    since: str
    changes: tuple[Change, ...]
    proof: ReaderProof | None

    @property
    def failed(self) -> bool:
        """Whether a person has to look. Another text is fine once the numbers are proven equal."""
        return self.verdict != "absent" and self.proof is None


@dataclass(frozen=True)
class ReaderNumbers:
    """The numeric stage of one reader in one environment.

    Attributes:
        release: of PEFT.
        transformers: version that ran beside it.
        outcome: what it showed.
    """

    release: Release
    transformers: str
    outcome: ReaderOutcome

    @property
    def failed(self) -> bool:
        """Whether the numbers are not proven equal."""
        return self.outcome.status != "passed"


@dataclass(frozen=True)
class PeftReport:
    """The entries of one run.

    Attributes:
        releases: of PEFT, in the order in which they were checked.
        entries: by release and reader.
        numeric: of the numeric stage; empty if only the static one was run.
    """

    releases: tuple[Release, ...]
    entries: tuple[ReaderEntry, ...]
    numeric: tuple[ReaderNumbers, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether any entry of either stage failed."""
        return any(entry.failed for entry in self.entries) or any(one.failed for one in self.numeric)


def reader_summary(entry: ReaderEntry) -> str:
    """An entry in one line."""
    since = f" (compared with {entry.since})" if entry.since else ""
    return f"{entry.verdict}{since}{': its numbers are proven' if entry.verdict == 'changed' and entry.proof else ''}"


def reader_explanation(entry: ReaderEntry, *, diff: bool = True) -> Iterator[str]:
    """What a person needs to know of a reader whose text is another one, in lines."""
    if entry.finding.reason:
        yield one_line(entry.finding.reason)
    if entry.verdict == "changed" and not entry.since:
        yield "no release on record has this layer"
    for change in entry.changes:
        where = f"{change.path}:{change.line}" if change.path else "PEFT"
        yield one_line(f"{where}: {change.name} {'is ' if change.what != 'changed' else ''}{change.what}")
        if diff:
            yield from (f"  {one_line(line)}" for line in change.diff)


def peft_json(report: PeftReport) -> dict[str, Any]:
    """All of it, for a JSON object."""
    return {
        "releases": [{"version": r.version, "origin": r.origin, "hash": r.hash_note} for r in report.releases],
        "results": [
            {
                "release": entry.release.version,
                "reader": entry.finding.reader,
                "verdict": entry.verdict,
                "failed": entry.failed,
                "compared_with": entry.since or None,
                "source": entry.finding.source or None,
                "reason": entry.finding.reason or None,
                "proof": dict(entry.proof.versions) if entry.proof else None,
                "changes": [
                    {
                        "name": one.name,
                        "path": one.path,
                        "line": one.line or None,
                        "what": one.what,
                        "diff": list(one.diff),
                    }
                    for one in entry.changes
                ],
            }
            for entry in report.entries
        ],
        "numeric": [
            {
                "release": one.release.version,
                "reader": one.outcome.reader,
                "status": one.outcome.status,
                "reason": one.outcome.reason or None,
                "versions": dict(one.outcome.versions),
                "cases": {
                    case.name: {"status": case.status, "errors": dict(case.errors)} for case in one.outcome.cases
                },
            }
            for one in report.numeric
        ],
    }
