"""The numeric stage over the releases of a check report, each in an environment that has it; proofs are recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from patchkit.arch.spec import Architecture
from patchkit.check.environments import Environment, environment_for, running_environment
from patchkit.check.ledger import SHIPPED, add_proofs, user_ledger
from patchkit.check.releases import Release, module_path
from patchkit.check.report import CheckReport, Entry, NumericEntry, with_text_models
from patchkit.check.wheels import PACKAGE


def check_numeric(
    report: CheckReport,
    architectures: Sequence[Architecture],
    *,
    unproven: bool = False,
    progress: Callable[[str, int, int], None] = lambda text, done, of: None,
) -> CheckReport:
    """Run the parity contract for every release of a static report, and enter what is proven into the ledger.

    Args:
        report: of the static stage. An architecture that a release does not have is not run there.
        architectures: as the user named them.
        unproven: leave out what the ledger proves already, for the very same source.
        progress: is told what is done, and how many of how many architectures are.

    Returns:
        The report with numeric entries, and with the proofs that were made.

    Raises:
        ReleaseEnvironmentError: there is no environment for a release, or it does not run.
        CacheError: the ledger or the cache cannot be written.
    """
    found: list[NumericEntry] = []
    tasks = {release: _to_check(release, report, architectures, unproven) for release in report.releases}
    total = sum(map(len, tasks.values()))
    for release, names in tasks.items():
        if not names:
            continue
        progress(f"environment for {release.package} {release.version}", len(found), total)
        environment = _environment(release)
        progress(f"numbers of {release.package} {release.version}", len(found), total)
        for outcome in environment.check(names, jobs=os.cpu_count() or 1):
            found.append(NumericEntry(release, outcome))
            if outcome.proofs:
                add_proofs(ledger_to_write(), outcome.proofs)
            progress(f"numbers of {release.package} {release.version}", len(found), total)
    proofs = {(proof.key.class_name, proof.key.source): proof for one in found for proof in one.outcome.proofs}
    entries = tuple(
        replace(entry, proof=proofs.get((entry.finding.owner, entry.finding.source), entry.proof))
        for entry in report.entries
    )
    return replace(report, entries=entries, numeric=tuple(found))


def ledger_to_write() -> Path:
    """The shipped ledger in a checkout of patchkit, where a proof is to be committed; elsewhere the user's own."""
    return SHIPPED if (SHIPPED.parents[2] / "pyproject.toml").is_file() else user_ledger()


def _environment(release: Release) -> Environment:
    if release.is_installed:
        return running_environment()
    return environment_for(Path(release.origin) if release.origin != "wheel" else release.version)


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
