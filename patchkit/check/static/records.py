"""What was found in which release, as a file: the one from which the matrix is made, and against which drift is judged.

``records.jsonl`` ships with the package: one JSON object a line for each class of each release, sorted by release, so
that a new release adds lines at the end and merges as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from packaging.version import InvalidVersion, Version

from patchkit.arch.spec import Part
from patchkit.cache.lines import read_lines
from patchkit.cache.storage import locked, write_whole
from patchkit.check.static.findings import Finding, key_of_finding
from patchkit.check.static.verdicts import PartOutcome, Verdict, judge
from patchkit.rewrite import REWRITE_VERSION
from patchkit.rewrite.sites import RuleName
from patchkit.trust.ledger import Key
from patchkit.version import __version__

SHIPPED_RECORDS = Path(__file__).with_name("records.jsonl")
"""The records of the package."""


@dataclass(frozen=True)
class Record:
    """A finding, judged, with what made it and when.

    Attributes:
        finding: what the static stage found.
        verdicts: the verdict on each of its parts.
        rewrite: ``REWRITE_VERSION`` of the rewriter.
        patchkit: version of patchkit.
        date: day of the finding, ``YYYY-MM-DD``.
    """

    finding: Finding
    verdicts: Mapping[Part, Verdict]
    rewrite: int
    patchkit: str
    date: str

    @property
    def order(self) -> tuple[Version, str, str, str]:
        """Where it stands in the file."""
        finding = self.finding
        return Version(finding.release), finding.architecture, finding.block, finding.class_name

    @property
    def key(self) -> Key:
        """What a numeric proof of the class would be of."""
        return key_of_finding(self.finding, self.rewrite)

    def to_line(self) -> str:
        """The record as one line, without line end."""
        finding = self.finding
        parts = {
            part: {"verdict": self.verdicts[part], "rules": outcome.rules, "reasons": outcome.reasons}
            for part, outcome in finding.parts.items()
        }
        data = {
            "release": finding.release,
            "architecture": finding.architecture,
            "block": finding.block,
            "class": finding.class_name,
            "owner": finding.owner,
            "path": finding.path,
            "line": finding.line,
            "source": finding.source,
            "parts": parts,
            "rewritten": finding.rewritten,
            "rewrite": self.rewrite,
            "patchkit": self.patchkit,
            "date": self.date,
        }
        return json.dumps(data)

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Read what :meth:`to_line` wrote.

        Raises:
            ValueError: it is not such a line.
        """
        try:
            data: dict[str, Any] = json.loads(line)
            parts = data["parts"]
            outcomes = {name: PartOutcome(tuple(part["rules"]), tuple(part["reasons"])) for name, part in parts.items()}
            Version(data["release"])
            finding = Finding(
                data["release"],
                data["architecture"],
                data["block"],
                data["class"],
                data["owner"],
                data["path"],
                data["line"],
                data["source"],
                outcomes,
                data["rewritten"],
            )
            verdicts = {name: part["verdict"] for name, part in parts.items()}
            if not set(verdicts.values()) <= set(get_args(Verdict)) or not set(verdicts) <= set(get_args(Part)):
                raise ValueError("an unknown verdict or part")
            return cls(finding, verdicts, data["rewrite"], data["patchkit"], data["date"])
        except (KeyError, TypeError, AttributeError, InvalidVersion) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


@dataclass
class Records:
    """Every record, in order."""

    entries: list[Record] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path | None = None) -> Records:
        """Read a file of records, by default those of the package; none if there is no such file.

        Raises:
            CacheError: it cannot be read, or a line is damaged; the line is named.
        """
        entries = read_lines(path or SHIPPED_RECORDS, Record.from_line)
        return cls(sorted(entries, key=lambda record: record.order))

    def save(self, path: Path) -> None:
        """Write the file as a whole.

        Raises:
            CacheError: it cannot be written; the old one is unchanged.
        """
        with locked(path):
            write_whole(path, "".join(f"{record.to_line()}\n" for record in self.entries))

    def releases(self) -> list[Version]:
        """The releases that are recorded, oldest first."""
        return sorted({Version(record.finding.release) for record in self.entries})

    def of(self, release: str) -> list[Record]:
        """The records of one release."""
        return [record for record in self.entries if record.finding.release == release]

    def before(self, finding: Finding, part: Part) -> Record | None:
        """The record of the last earlier release in which this part of this class was rewritten at all."""
        found = None
        for record in self.entries:
            earlier = record.finding
            same = (earlier.architecture, earlier.block, earlier.class_name) == _class_of(finding)
            if same and Version(earlier.release) < Version(finding.release) and earlier.parts[part].rules:
                found = record
        return found

    def judged(self, finding: Finding) -> dict[Part, Verdict]:
        """The verdict on each part of a finding, against these records."""
        verdicts: dict[Part, Verdict] = {}
        for part, outcome in finding.parts.items():
            known = self.before(finding, part)
            verdicts[part] = judge(outcome, known.finding.parts[part].rules if known else ())
        return verdicts

    def with_findings(self, findings: Iterable[Finding], date: str) -> Records:
        """These records with findings added.

        A release that is among the findings is replaced for the architectures that are; a record that says the same
        as before keeps its date and version. Every verdict is judged anew: an added release may lie before others.
        """
        new = list(findings)
        replaced = {(finding.release, finding.architecture) for finding in new}
        known = {_content(record): record for record in self.entries}
        kept = [r for r in self.entries if (r.finding.release, r.finding.architecture) not in replaced]
        fresh = (Record(finding, self.judged(finding), REWRITE_VERSION, __version__, date) for finding in new)
        merged = [*kept, *(known.get(_content(record), record) for record in fresh)]
        return Records(list(_rejudged(sorted(merged, key=lambda record: record.order))))


def _content(record: Record) -> str:
    """What a record says, without who says it and when."""
    return replace(record, verdicts=dict.fromkeys(record.finding.parts, "absent"), patchkit="", date="").to_line()


def _class_of(finding: Finding) -> tuple[str, str, str]:
    return finding.architecture, finding.block, finding.class_name


def _rejudged(entries: Iterable[Record]) -> Iterator[Record]:
    """The records with verdicts, each judged against those before it; they come in the order of releases."""
    last: dict[tuple[str, str, str, Part], tuple[RuleName, ...]] = {}
    for record in entries:
        verdicts: dict[Part, Verdict] = {}
        for part, outcome in record.finding.parts.items():
            key = (*_class_of(record.finding), part)
            verdicts[part] = judge(outcome, last.get(key, ()))
            last[key] = outcome.rules or last.get(key, ())
        yield replace(record, verdicts=verdicts)
