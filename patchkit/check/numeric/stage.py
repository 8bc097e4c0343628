"""The numeric stage over the releases of a check report, each in an environment that has it; proofs are recorded.

A proof comes from a process that ran the release's code. It is believed only for a class and source that the static
stage finds in the text of that release; and an architecture has passed only if each of its blocks has numbers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from patchkit.arch.registry import architectures as registered
from patchkit.arch.spec import Architecture
from patchkit.check.numeric.environments import SECONDS, Environment, environment_for, running_environment
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.results.report import CheckReport, Entry, NumericEntry, with_text_models
from patchkit.check.static.examine import Finding, examine, key_of_finding
from patchkit.errors import CacheError, PatchkitWarning, ReleaseEnvironmentError
from patchkit.trust.ledger import SHIPPED, USER_LIMIT, Key, Proof, add_proofs, user_ledger
from patchkit.upstream.release import WHEEL, Release, module_path
from patchkit.upstream.wheels import PACKAGE


def check_numeric(
    report: CheckReport,
    architectures: Sequence[Architecture],
    *,
    unproven: bool = False,
    record: bool = False,
    seconds: float = SECONDS,
    progress: Callable[[str, int, int], None] = lambda text, done, of: None,
) -> CheckReport:
    """Run the parity contract for every release of a static report, and enter what is proven into a ledger.

    Args:
        report: of the static stage. An architecture that a release does not have is not run there.
        architectures: as the user named them.
        unproven: leave out what the ledger proves already, for the very same source.
        record: enter proofs into the ledger of this checkout of patchkit, to be committed, and not into the user's.
        seconds: for pip and one release, and for the numbers of one tiny model.
        progress: is told what is done, and how many of how many architectures are.

    Returns:
        The report with a numeric entry for every architecture that had to be run, and with the proofs that were made.

    Raises:
        ReleaseEnvironmentError: there is no environment for a release, or it is not the one that was read.
        CacheError: the cache cannot be written; or the ledger, if that was asked for.
    """
    ledger = ledger_to_write(record)
    found: list[NumericEntry] = []
    tasks = {release: _to_check(release, report, architectures, unproven) for release in report.releases}
    total = sum(map(len, tasks.values()))
    for release, names in tasks.items():
        if not names:
            continue
        progress(f"environment for {release.package} {release.version}", len(found), total)
        environment = _environment(release, seconds)
        progress(f"numbers of {release.package} {release.version}", len(found), total)
        evidence = _Evidence(release, report)
        missing = dict.fromkeys(names)
        for told in environment.check(names, jobs=os.cpu_count() or 1, seconds=seconds):
            outcome = evidence.weighed(told)
            missing.pop(outcome.architecture, None)
            found.append(NumericEntry(release, outcome))
            _enter(ledger, outcome.proofs, required=record)
            progress(f"numbers of {release.package} {release.version}", len(found), total)
        for name in missing:
            problems = {name: "no outcome came of it"}
            found.append(NumericEntry(release, ArchitectureOutcome(name, environment.versions, problems=problems)))
    proofs = {proof.key: proof for one in found for proof in one.outcome.proofs}
    entries = tuple(
        replace(entry, proof=proofs.get(key_of_finding(entry.finding), entry.proof)) for entry in report.entries
    )
    return replace(report, entries=entries, numeric=tuple(found))


class _Evidence:
    """What the static stage knows of one release, against which outcomes are held."""

    def __init__(self, release: Release, report: CheckReport) -> None:
        self.release = release
        findings = [entry.finding for entry in report.entries if entry.release == release]
        self.known: dict[str, list[Finding]] = {}  # by architecture
        for finding in findings:
            self.known.setdefault(finding.architecture, []).append(finding)

    def weighed(self, outcome: ArchitectureOutcome) -> ArchitectureOutcome:
        """The outcome; what cannot be, or is missing, is one of its problems, and what cannot be is left out."""
        blocks, problems = [], dict(outcome.problems or {})
        for block in outcome.blocks:
            if block.proof is None or self._has(Proof.from_line(block.proof).key):
                blocks.append(block)
            else:
                problems[block.class_name] = (
                    f"its numbers are of a source that {self.release.package} {self.release.version} does not have "
                    f"at {self.release.location}"
                )
        weighed = replace(outcome, blocks=tuple(blocks), problems=problems)
        if weighed.status == "passed":
            problems.update(self._missing(weighed))
        return weighed

    def _has(self, key: Key) -> bool:
        """Whether the release has what a proof is of. A tiny model has blocks of other architectures too."""
        if key in self._keys():
            return True
        for architecture in registered().values():
            if architecture.module.partition(".")[0] == self.release.package and architecture.name not in self.known:
                self.known[architecture.name] = examine(self.release, architecture)
        return key in self._keys()

    def _keys(self) -> set[Key]:
        return {key_of_finding(one) for found in self.known.values() for one in found}

    def _missing(self, outcome: ArchitectureOutcome) -> dict[str, str]:
        """The blocks of an architecture that are rewritten, and of which no class has numbers."""
        proven = {proof.key for proof in outcome.proofs}
        blocks: dict[str, list[Finding]] = {}
        for finding in self.known.get(outcome.architecture, []):
            if any(part.rules for part in finding.parts.values()):
                blocks.setdefault(finding.block, []).append(finding)
        return {
            name: "it is rewritten, but no model showed its numbers"
            for name, findings in blocks.items()
            if not any(key_of_finding(one) in proven for one in findings)
        }


def ledger_to_write(record: bool) -> Path:
    """Where proofs go: the user's ledger, or the shipped one of a checkout of patchkit if that was asked for.

    Raises:
        ReleaseEnvironmentError: it was asked for, and patchkit is installed and no checkout.
    """
    if not record:
        return user_ledger()
    if not (SHIPPED.parents[2] / "pyproject.toml").is_file():
        raise ReleaseEnvironmentError(
            f"--record enters proofs into a checkout of patchkit, to be committed, and {SHIPPED.parents[1]} is none"
        )
    return SHIPPED


def _enter(ledger: Path, proofs: Iterable[Proof], *, required: bool) -> None:
    proofs = list(proofs)
    if not proofs:
        return
    try:
        add_proofs(ledger, proofs, limit=None if required else USER_LIMIT)
    except CacheError as error:
        if required:
            raise
        warnings.warn(f"what was proven is not remembered: {error}", PatchkitWarning, stacklevel=2)


def _environment(release: Release, seconds: float) -> Environment:
    if release.is_installed:
        return running_environment()
    if release.origin == WHEEL:
        return environment_for(release.version, seconds=seconds)
    return environment_for(Path(release.origin), expected=release.version, seconds=seconds)


def _to_check(
    release: Release, report: CheckReport, architectures: Sequence[Architecture], unproven: bool
) -> list[str]:
    """The architectures whose numbers are to be checked in a release: those of which it has something rewritten."""
    names = []
    for architecture in architectures:
        if release.package == PACKAGE and release.read(module_path(architecture.module)) is None:
            continue
        towers = {one.name for one in with_text_models([architecture])}
        entries = [e for e in report.entries if e.release == release and e.finding.architecture in towers]
        if _anything_to_prove(entries, unproven):
            names.append(architecture.name)
    return names


def _anything_to_prove(entries: Sequence[Entry], unproven: bool) -> bool:
    rewritten = [entry for entry in entries if entry.outcome.rules]
    return any(not entry.proof for entry in rewritten) if unproven else bool(rewritten)
