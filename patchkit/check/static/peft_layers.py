"""The static stage for PEFT: what each reader relies on is read from a release, and compared with what is recorded.

``peft_records.jsonl`` ships with the package: one JSON object a line for each reader of each release, with the hash of
every function. The matrix is made from it, and what changed in a release is told from the nearest one that it has.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from patchkit.adapters.peft_sources import READERS, Piece, digest_of, pieces_of, sources_of
from patchkit.cache.lines import read_lines
from patchkit.cache.storage import write_whole
from patchkit.errors import RewriteError
from patchkit.upstream.release import Release
from patchkit.upstream.text import split_lines
from patchkit.version import __version__

SHIPPED_PEFT_RECORDS = Path(__file__).with_name("peft_records.jsonl")
"""The records of the package."""


@dataclass(frozen=True)
class ReaderFinding:
    """What one reader relies on, in one release of PEFT.

    Attributes:
        release: version of PEFT.
        reader: its name.
        pieces: the functions, by name; empty if the release has no such layer.
        reason: why it cannot be read; empty if it can.
    """

    release: str
    reader: str
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    reason: str = ""

    @property
    def source(self) -> str:
        """One hash of all of them; empty if there is nothing."""
        return digest_of(sources_of(self.pieces)) if self.pieces else ""


def findings_in(release: Release) -> list[ReaderFinding]:
    """What every reader relies on, in a release.

    Raises:
        ReleaseError: a file of it cannot be read.
    """
    return [_finding(release, reader) for reader in READERS]


def _finding(release: Release, reader: str) -> ReaderFinding:
    try:
        pieces = pieces_of(release.read, reader)
    except RewriteError as error:
        return ReaderFinding(release.version, reader, reason=str(error))
    # The layer's own forward comes first.
    first = next(iter(READERS[reader].values())).split()[0]
    return ReaderFinding(release.version, reader, pieces if first in pieces else {})


# ---- records


@dataclass(frozen=True)
class ReaderRecord:
    """A finding as it is recorded.

    Attributes:
        release: version of PEFT.
        reader: its name.
        sources: the hash of each function by name; empty if the release has no such layer.
        patchkit: version of patchkit.
        date: day of the finding, ``YYYY-MM-DD``.
    """

    release: str
    reader: str
    sources: Mapping[str, str]
    patchkit: str
    date: str

    @property
    def source(self) -> str:
        """As :attr:`ReaderFinding.source`."""
        return digest_of(self.sources) if self.sources else ""

    def to_line(self) -> str:
        """The record as one line."""
        return json.dumps(
            {
                "release": self.release,
                "reader": self.reader,
                "patchkit": self.patchkit,
                "date": self.date,
                "sources": dict(self.sources),
            }
        )

    @classmethod
    def from_line(cls, line: str) -> ReaderRecord:
        """Read what :meth:`to_line` wrote.

        Raises:
            ValueError: it is not such a line.
        """
        try:
            data: dict[str, Any] = json.loads(line)
            sources = {str(name): str(source) for name, source in data["sources"].items()}
            release = str(Version(data["release"]))
            return cls(release, str(data["reader"]), sources, str(data["patchkit"]), str(data["date"]))
        except (KeyError, TypeError, AttributeError, InvalidVersion, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class ReaderRecords:
    """Every record, by release and reader."""

    entries: tuple[ReaderRecord, ...] = ()

    @classmethod
    def load(cls, path: Path | None = None) -> ReaderRecords:
        """Read a file of records, by default the package's; none if there is no such file.

        Raises:
            CacheError: it cannot be read, or a line is damaged; the line is named.
        """
        return cls(tuple(read_lines(path or SHIPPED_PEFT_RECORDS, ReaderRecord.from_line)))

    def save(self, path: Path) -> None:
        """Write the file as a whole.

        Raises:
            CacheError: it cannot be written; the old one is unchanged.
        """
        write_whole(path, "".join(f"{record.to_line()}\n" for record in self.entries))

    def releases(self) -> list[Version]:
        """The releases that are recorded, oldest first."""
        return sorted({Version(record.release) for record in self.entries})

    def of(self, release: str, reader: str) -> ReaderRecord | None:
        """One record."""
        found = [one for one in self.entries if (one.release, one.reader) == (release, reader)]
        return found[-1] if found else None

    def nearest(self, finding: ReaderFinding) -> ReaderRecord | None:
        """The record that a finding is compared with: the last release up to its own that has the layer, or the first.

        Of those with the very same source, if there are any.
        """
        there = [one for one in self.entries if one.reader == finding.reader and one.sources]
        there = [one for one in there if one.source == finding.source] or there
        there.sort(key=lambda one: Version(one.release))
        earlier = [one for one in there if Version(one.release) <= Version(finding.release)]
        return earlier[-1] if earlier else there[0] if there else None

    def with_findings(self, findings: Iterable[ReaderFinding], date: str) -> ReaderRecords:
        """These records with findings added; one that says the same as before keeps its date and version."""
        sources = ((one.release, one.reader, sources_of(one.pieces)) for one in findings)
        return self.with_sources(sources, date)

    def with_sources(self, found: Iterable[tuple[str, str, Mapping[str, str]]], date: str) -> ReaderRecords:
        """As :meth:`with_findings`, from a release, a reader and the hash of each function."""
        merged = {(one.release, one.reader): one for one in self.entries}
        for release, reader, sources in found:
            new = ReaderRecord(release, reader, dict(sources), __version__, date)
            old = merged.get((new.release, new.reader))
            if old is None or replace(old, patchkit="", date="") != replace(new, patchkit="", date=""):
                merged[new.release, new.reader] = new
        readers = list(READERS)
        return ReaderRecords(
            tuple(
                sorted(
                    (one for one in merged.values() if one.reader in readers),
                    key=lambda one: (Version(one.release), readers.index(one.reader)),
                )
            )
        )


# ---- what changed


@dataclass(frozen=True)
class Change:
    """One function that another release has otherwise.

    Attributes:
        name: of the function: ``Linear.forward``.
        path: of its file, in the newer release; where it is gone, in the recorded one if that can be read.
        line: its first line there; 0 if unknown.
        what: ``changed``, ``new`` or ``gone``.
        diff: of its text, from the recorded release; empty if that cannot be read.
    """

    name: str
    path: str
    line: int
    what: str
    diff: tuple[str, ...] = ()


def changes_since(
    finding: ReaderFinding, record: ReaderRecord | None, before: Callable[[], Mapping[str, Piece]]
) -> Sequence[Change]:
    """What a release changed in what a reader relies on.

    Args:
        finding: of the release.
        record: of the release that it is compared with; None if there is none.
        before: gives the pieces of that release, to show how they changed. Asked only if something has changed.
    """
    old, new = (record.sources if record else {}), sources_of(finding.pieces)
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if not names or record is None:
        return ()
    known = before()
    found = []
    for name in names:
        what = "gone" if name not in new else "changed" if name in old else "new"
        piece, earlier = finding.pieces.get(name), known.get(name)
        shown = piece or earlier
        diff = (
            _diff(earlier, piece, record.release, finding.release) if piece is None or earlier or what == "new" else ()
        )
        found.append(Change(name, shown.path if shown else "", shown.line if shown else 0, what, tuple(diff)))
    return found


def _diff(old: Piece | None, new: Piece | None, before: str, now: str) -> Iterable[str]:
    texts = [[line.rstrip("\r\n") for line in split_lines(one.text)] if one else [] for one in (old, new)]
    names = [f"peft-{version}/{one.path if one else ''}" for version, one in ((before, old), (now, new))]
    return difflib.unified_diff(texts[0], texts[1], names[0], names[1], lineterm="")
