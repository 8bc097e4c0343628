"""Which versions of torch the numeric checks were run with, and what came of it.

``torch_records.jsonl`` ships with the package: one JSON object a line for each version that ``patchkit watch --torch``
ran. A proof of the ledger is of a class's source, which no torch changes, so it says the torch that it was made with
and nothing of others; this says it of others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from patchkit.cache.lines import read_lines
from patchkit.cache.storage import write_whole
from patchkit.check.numeric.outcomes import VERSIONED, ArchitectureOutcome
from patchkit.errors import ReleaseEnvironmentError
from patchkit.escaping import markdown
from patchkit.version import __version__

SHIPPED_TORCH_RECORDS = Path(__file__).with_name("torch_records.jsonl")
"""The records of the package."""


@dataclass(frozen=True)
class TorchRecord:
    """The numeric stage of every architecture with one version of torch.

    Attributes:
        torch: its version, without the build.
        architectures: how many were run.
        unproven: those of them whose numbers were not proven equal, by name.
        passed: how many checks passed, over every class of every tiny model.
        failed: how many failed; a tiny model that could not be run at all is one.
        inapplicable: how many upstream itself cannot do.
        versions: of transformers, torch, peft and Python that ran.
        patchkit: version of patchkit.
        date: ``YYYY-MM-DD``.
    """

    torch: str
    architectures: int
    unproven: tuple[str, ...]
    passed: int
    failed: int
    inapplicable: int
    versions: Mapping[str, str]
    patchkit: str
    date: str

    @property
    def checks(self) -> int:
        """How many checks there were."""
        return self.passed + self.failed + self.inapplicable

    @classmethod
    def of(cls, torch: str, outcomes: Sequence[ArchitectureOutcome], date: str) -> TorchRecord:
        """What a run showed.

        Args:
            torch: the version that was asked for.
            outcomes: of every architecture; at least one, each of the same versions.
            date: ``YYYY-MM-DD``.

        Raises:
            ReleaseEnvironmentError: nothing was run, or with another torch.
        """
        found = {json.dumps(dict(one.versions), sort_keys=True) for one in outcomes}
        versions: dict[str, str] = json.loads(found.pop()) if len(found) == 1 else {}
        ran = versions.get("torch", "")
        if not ran or Version(Version(ran).public) != Version(Version(torch).public):
            raise ReleaseEnvironmentError(
                f"the checks were to run with torch {torch}, but ran with {ran or 'none, or several'}; "
                f"`patchkit check --all --torch {torch}` shows what runs"
            )
        counts = Counter(check.status for one in outcomes for block in one.blocks for check in block.checks.values())
        problems = sum(len(one.problems or {}) for one in outcomes)
        unproven = tuple(sorted(one.architecture for one in outcomes if one.status != "passed"))
        return cls(
            Version(ran).public,
            len(outcomes),
            unproven,
            counts["passed"],
            counts["failed"] + problems,
            counts["inapplicable"],
            versions,
            __version__,
            date,
        )

    def to_line(self) -> str:
        """The record as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> TorchRecord:
        """Read what :meth:`to_line` wrote.

        Raises:
            ValueError: it is not such a line.
        """
        try:
            data: dict[str, Any] = json.loads(line)
            versions = {str(name): str(version) for name, version in data["versions"].items()}
            of, passed, failed, inapplicable = counts = [
                int(data[name]) for name in ("architectures", "passed", "failed", "inapplicable")
            ]
            unproven = tuple(str(name) for name in data["unproven"])
            torch = Version(data["torch"]).public
            Version(versions["torch"])
            date, patchkit = str(data["date"]), str(data["patchkit"])
        except (KeyError, TypeError, AttributeError, InvalidVersion, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if set(versions) != set(VERSIONED) or min(counts) < 0 or len(unproven) > of:
            raise ValueError("its versions or counts are none")
        return cls(torch, of, unproven, passed, failed, inapplicable, versions, patchkit, date)


@dataclass(frozen=True)
class TorchRecords:
    """Every record, oldest version first; one for each."""

    entries: tuple[TorchRecord, ...] = ()

    @classmethod
    def load(cls, path: Path | None = None) -> TorchRecords:
        """Read a file of records, by default the package's; none if there is no such file.

        Raises:
            CacheError: it cannot be read, or a line is damaged; the line is named.
        """
        records = cls()
        for record in read_lines(path or SHIPPED_TORCH_RECORDS, TorchRecord.from_line):
            records = records.with_record(record)
        return records

    def save(self, path: Path) -> None:
        """Write the file as a whole.

        Raises:
            CacheError: it cannot be written; the old one is unchanged.
        """
        write_whole(path, "".join(f"{record.to_line()}\n" for record in self.entries))

    def releases(self) -> list[Version]:
        """The versions that are recorded, oldest first."""
        return [Version(record.torch) for record in self.entries]

    def with_record(self, new: TorchRecord) -> TorchRecords:
        """These with one more, in place of that of the same version."""
        others = (one for one in self.entries if one.torch != new.torch)
        return TorchRecords(tuple(sorted((*others, new), key=lambda one: Version(one.torch))))


TORCH_SAID = (
    "The numeric checks of every architecture, on its tiny models, in an environment with this torch "
    "and the other packages as they stand beside it."
)


def torch_rows(records: TorchRecords) -> Iterator[tuple[str, ...]]:
    """What the tables show of each version, newest first: as :data:`TORCH_HEADINGS`."""
    for one in reversed(records.entries):
        beside = ", ".join(
            f"{shown} {one.versions[name]}"
            for name, shown in {"transformers": "transformers", "peft": "PEFT", "python": "Python"}.items()
        )
        equal = f"{one.architectures - len(one.unproven)} of {one.architectures}"
        yield one.torch, equal, str(one.passed), str(one.failed), str(one.inapplicable), beside, one.date


TORCH_HEADINGS = (
    "torch", "architectures proven equal", "checks passed", "failed", "not applicable", "with", "day",
)  # fmt: skip


def torch_section(records: TorchRecords) -> Iterable[str]:
    """The section of ``compat_matrix.md``, in lines; nothing if nothing is recorded."""
    if not records.entries:
        return
    yield ""
    yield "## torch"
    yield ""
    yield f"{TORCH_SAID} `patchkit watch --torch` runs those that are not here."
    yield ""
    yield f"| {' | '.join(TORCH_HEADINGS)} |"
    yield "|---|--:|--:|--:|--:|---|---|"
    for row in torch_rows(records):
        yield f"| {' | '.join(map(markdown, row))} |"
    for one in records.entries:
        if one.unproven:
            yield ""
            yield f"torch {markdown(one.torch)}, not proven equal: {', '.join(map(markdown, one.unproven))}."
