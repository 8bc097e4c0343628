"""The result of ``patchkit check``: one entry for each part of each class of each release, and whether all is well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from patchkit.arch.registry import find
from patchkit.arch.spec import Architecture, Part
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.static.drift import Diagnosis, diagnose
from patchkit.check.static.examine import FAILURES, Finding, PartOutcome, Verdict, block_named, key_of_finding
from patchkit.check.static.records import Records
from patchkit.check.static.sweep import sweep
from patchkit.trust.ledger import Proof, find_proof
from patchkit.upstream.release import Release, installed_release, module_path
from patchkit.upstream.wheels import PACKAGE


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
    """

    release: Release
    outcome: ArchitectureOutcome

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
    """

    releases: tuple[Release, ...]
    entries: tuple[Entry, ...]
    numeric: tuple[NumericEntry, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing that was asked for is in any of the releases."""
        return all(entry.verdict == "absent" for entry in self.entries)

    @property
    def failed(self) -> bool:
        """Whether any entry of either stage failed, or there was nothing to verify at all."""
        failed = [entry.failed for entry in self.entries] + [entry.failed for entry in self.numeric]
        return any(failed) or self.empty


def with_text_models(architectures: Iterable[Architecture]) -> list[Architecture]:
    """Architectures with blocks: one without stands for the text models that its configuration names."""
    found: dict[str, Architecture] = {}
    for architecture in architectures:
        chosen = [architecture] if architecture.blocks else [find(name) for name in architecture.text_models]
        found.update({one.name: one for one in chosen})
    return list(found.values())


def check_static(
    releases: Sequence[Release],
    architectures: Iterable[Architecture],
    records: Records,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> CheckReport:
    """Run the static stage, judge it against the records, and explain what needs a person.

    Args:
        releases: of transformers. An architecture of another package is checked as that package is installed.
        architectures: to look for; see :func:`with_text_models`.
        records: what is known of earlier releases.
        progress: is told how many of how many pairs are done.

    Raises:
        ReleaseError: a release cannot be read.
        CacheError: the cache cannot be written.
    """
    asked = list(architectures)
    chosen = with_text_models(asked)
    upstream = [one for one in chosen if _package(one) == PACKAGE]
    findings = sweep(releases, upstream, progress=progress) if upstream else []
    by_version = {(release.package, release.version): release for release in releases}
    wanted = {release.version: _there(release, asked) for release in releases}
    entries = [
        entry
        for finding in findings
        if finding.architecture in wanted[finding.release]
        for entry in _entries(by_version[PACKAGE, finding.release], finding, records)
    ]
    plugins: dict[str, Release] = {}
    for architecture in chosen:
        if (package := _package(architecture)) != PACKAGE:
            release = plugins.setdefault(package, installed_release(package))
            found = sweep([release], [architecture])
            entries.extend(entry for finding in found for entry in _entries(release, finding, Records()))
    used = [release for release in releases if upstream] + list(plugins.values())
    return CheckReport(tuple(used), tuple(entries))


def _there(release: Release, asked: Sequence[Architecture]) -> set[str]:
    """What is to be looked for in a release: one without the multimodal model that was asked for has nothing of it."""
    present = [one for one in asked if one.blocks or release.read(module_path(one.module)) is not None]
    return {one.name for one in with_text_models(present)}


def _package(architecture: Architecture) -> str:
    return architecture.module.partition(".")[0]


def _entries(release: Release, finding: Finding, records: Records) -> Iterable[Entry]:
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
