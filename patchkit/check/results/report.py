"""The result of ``patchkit check``: one entry for each part of each class of each release, and whether all is well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from patchkit.arch.registry import find
from patchkit.arch.spec import Part
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.results.peft import PeftReport
from patchkit.check.static.drift import Diagnosis, diagnose
from patchkit.check.static.findings import Finding, block_named, key_of_finding
from patchkit.check.static.records import Records
from patchkit.check.static.verdicts import FAILURES, PartOutcome, Verdict
from patchkit.trust.ledger import Proof, find_proof
from patchkit.upstream.release import Release


@dataclass(frozen=True)
class Entry:
    """One part of one class in one release.

    Attributes:
        release: the release.
        finding: what the static stage found of the class.
        part: the part of the model.
        verdict: the verdict on it.
        since: the release that it was compared with; empty if none is recorded before.
        proof: the numeric proof of the class's very source, if the ledger has one.
        diagnosis: where the verdict needs a person.
    """

    release: Release
    finding: Finding
    part: Part
    verdict: Verdict
    since: str
    proof: Proof | None
    diagnosis: Diagnosis | None

    @property
    def outcome(self) -> PartOutcome:
        """What the rewriter made of it."""
        return self.finding.parts[self.part]

    @property
    def failed(self) -> bool:
        """Whether a person has to look. Another rule than before is fine once the numbers are proven equal."""
        return self.verdict in FAILURES and not (self.verdict == "rewritten differently" and self.proof)

    @property
    def skipped(self) -> bool:
        """Whether it is no failure, and not verified either: it is not there, or only partly rewritten."""
        return not self.failed and self.verdict in {"absent", "partial"}


@dataclass(frozen=True)
class NumericEntry:
    """The numeric stage of one architecture in one release.

    Attributes:
        release: the release.
        outcome: what its tiny models showed.
        beside: other releases than those installed that it ran with, for people: ``PEFT 0.20.0, torch 2.8.0``.
    """

    release: Release
    outcome: ArchitectureOutcome
    beside: str = ""

    @property
    def environment(self) -> str:
        """What ran, for people."""
        return f"{self.release.package} {self.release.version}{f' with {self.beside}' if self.beside else ''}"

    @property
    def failed(self) -> bool:
        """Whether the numbers are not proven equal. That nothing could be shown is no proof either."""
        return self.outcome.status != "passed"


@dataclass(frozen=True)
class CheckReport:
    """The entries of one run.

    Attributes:
        releases: in the order in which they were checked.
        entries: by release, architecture and class.
        numeric: of the numeric stage; empty if only the static one was run.
        peft: of PEFT's layers; None if they were not asked about.
    """

    releases: tuple[Release, ...]
    entries: tuple[Entry, ...]
    numeric: tuple[NumericEntry, ...] = ()
    peft: PeftReport | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing that was asked for is in any of the releases."""
        return self.peft is None and all(entry.verdict == "absent" for entry in self.entries)

    @property
    def failed(self) -> bool:
        """Whether any entry of either stage failed, or there was nothing to verify at all."""
        failed = [entry.failed for entry in self.entries] + [entry.failed for entry in self.numeric]
        return any(failed) or self.empty or (self.peft is not None and self.peft.failed)


def entries_of(release: Release, finding: Finding, records: Records) -> Iterator[Entry]:
    """One entry for each part of a finding, judged against the records.

    Raises:
        ReleaseError: the release cannot be read, to explain what needs a person.
    """
    verdicts = records.judged(finding)
    proof = find_proof(key_of_finding(finding)) if finding.source else None
    architecture = find(finding.architecture)
    for part, verdict in verdicts.items():
        known = records.before(finding, part)
        since = known.finding.release if known else ""
        diagnosis = None
        if verdict in FAILURES:
            block = block_named(architecture, finding.block)
            diagnosis = diagnose(release, architecture, block, finding, part, known)
        yield Entry(release, finding, part, verdict, since, proof, diagnosis)
