"""What ``patchkit check`` does, from the names that a user gives to a report.

The static stage reads and rewrites the source of each release, and judges it against the records. The numeric stage
then runs the models of what was rewritten, in an environment that has the release; what is proven goes into a ledger.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from patchkit.arch.registry import find, select
from patchkit.arch.spec import Architecture
from patchkit.check import TIME_LIMIT
from patchkit.check.numeric.environments import (
    CPU,
    NOTHING_ELSE,
    Beside,
    Environment,
    environment_for,
    running_environment,
)
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.peft_readers import beside_of, check_peft, prove_peft
from patchkit.check.results.evidence import Evidence, as_text_has_it
from patchkit.check.results.report import CheckReport, Entry, NumericEntry, entries_of
from patchkit.check.static.findings import key_of_finding
from patchkit.check.static.peft_layers import ReaderRecords
from patchkit.check.static.records import Records
from patchkit.check.static.sweep import sweep
from patchkit.errors import CacheError, PatchkitWarning, ReleaseEnvironmentError, ReleaseError
from patchkit.trust.ledger import SHIPPED_LEDGER, USER_LIMIT, Proof, add_proofs, user_ledger
from patchkit.upstream.release import INSTALLED, WHEEL, Release, installed_release, module_path
from patchkit.upstream.releases import resolve
from patchkit.upstream.wheels import PACKAGE, PEFT

Advance = Callable[..., None]
"""Is told how many steps are done and how many there are, and perhaps what is being done: ``text``."""

Progress = Callable[[str], AbstractContextManager[Advance]]
"""Opens what shows a person how far a piece of work is."""


@dataclass(frozen=True)
class Numbers:
    """How the numeric stage is run.

    Attributes:
        unproven: leave out what the ledger proves already, for the very same source.
        record: enter proofs into the ledger of this checkout of patchkit, to be committed, and not into the user's.
        seconds: for pip and one release, and for the numbers of one tiny model.
        device: where models run, as torch names it. What passes on another one than the CPU is shown and not entered
            into a ledger, whose proofs are all made on one kind of device.
    """

    unproven: bool = False
    record: bool = False
    seconds: float = TIME_LIMIT
    device: str = CPU


def _unseen(done: int, of: int, text: str | None = None) -> None:
    pass


@contextmanager
def _unshown(text: str) -> Iterator[Advance]:
    yield _unseen


def run_check(
    names: Iterable[str],
    wanted: Sequence[str],
    records: Records,
    numbers: Numbers | None = None,
    *,
    wheels: Path | None = None,
    require_hashes: bool = False,
    progress: Progress = _unshown,
    peft: Sequence[str] = (),
    torch: Sequence[str] = (),
) -> CheckReport:
    """The static stage, and the numeric one if it is asked for.

    Args:
        names: of architectures, or globs; none where only PEFT's layers are asked about.
        wanted: releases, as :func:`patchkit.upstream.releases.resolve` takes them.
        records: what is known of earlier releases.
        numbers: how the numeric stage is run; None leaves it out.
        wheels: a folder from which wheels are taken, and not from an index.
        require_hashes: take no wheel whose hash no index publishes.
        progress: shows how far each piece of work is.
        peft: releases of PEFT, as ``wanted``; their layers are checked, and the architectures run with each.
        torch: versions of torch that models run with; the installed one by default.

    Raises:
        PatchkitError: an architecture or release is unknown, or cannot be had.
    """
    ledger_to_write(numbers is not None and numbers.record)  # before anything is done in vain
    names = list(names)
    chosen = select(names) if names else []
    pefts: list[Release] = []
    with progress("fetching releases") as fetched:
        options: dict[str, Any] = {"wheels": wheels, "progress": fetched, "require_hashes": require_hashes}
        releases = resolve(wanted, **options) if chosen else []
        if peft:
            pefts = resolve(peft, package=PEFT, **options)
    with progress("rewriting") as rewritten:
        report = check_static(releases, chosen, records, rewritten)
    if pefts:
        report = replace(report, peft=check_peft(pefts, ReaderRecords.load(), wheels))
    if numbers is None:
        return report
    others = [_other_torch(version) for version in torch]
    with progress("") as proven:
        if report.peft is not None:
            report = replace(
                report,
                peft=prove_peft(
                    report.peft,
                    torch=others,
                    unproven=numbers.unproven,
                    record=numbers.record,
                    seconds=numbers.seconds,
                    progress=proven,
                ),
            )
        with_peft: list[Release | None] = [*pefts] or [None]
        beside = [beside_of(one, version) for one in with_peft for version in (others or [""])]
        return check_numeric(report, chosen, numbers, proven, beside=beside)


def _other_torch(asked: str) -> str:
    """A version of torch, or nothing if it is the one that is installed.

    Raises:
        ReleaseError: it is no version.
    """
    if asked == INSTALLED:
        return ""
    try:
        wanted = Version(asked)
    except InvalidVersion:
        raise ReleaseError(f"{asked!r} is no version of torch, such as 2.8.0; or '{INSTALLED}'") from None
    return "" if wanted == Version(Version(version("torch")).public) else str(wanted)


# ---- the static stage


def check_static(
    releases: Sequence[Release], architectures: Iterable[Architecture], records: Records, progress: Advance = _unseen
) -> CheckReport:
    """Run the static stage, judge it against the records, and explain what needs a person.

    Args:
        releases: of transformers. An architecture of another package is checked as that package is installed.
        architectures: to look for; see :func:`with_text_models`.
        records: what is known of earlier releases.
        progress: is told how many of how many pairs are done.

    Raises:
        ReleaseError: a release cannot be read; a plugin's package only where nothing else was asked for, and a
            :class:`PatchkitWarning` names it otherwise.
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
        for entry in entries_of(by_version[PACKAGE, finding.release], finding, records)
    ]
    plugins: dict[str, Release] = {}
    lost: dict[str, ReleaseError] = {}
    for architecture in chosen:
        if (package := _package(architecture)) != PACKAGE:
            try:
                release = plugins.setdefault(package, installed_release(package))
            except ReleaseError as error:
                lost[architecture.name] = error
                continue
            found = sweep([release], [architecture])
            entries.extend(entry for finding in found for entry in entries_of(release, finding, Records()))
    for name, why in lost.items():
        if not entries:
            raise why
        warnings.warn(f"architecture {name!r} was not checked: {why}", PatchkitWarning, stacklevel=2)
    used = [release for release in releases if upstream] + list(plugins.values())
    return CheckReport(tuple(used), tuple(entries))


def with_text_models(architectures: Iterable[Architecture]) -> list[Architecture]:
    """Architectures with blocks: one without stands for the text models that its configuration names."""
    found: dict[str, Architecture] = {}
    for architecture in architectures:
        chosen = [architecture] if architecture.blocks else [find(name) for name in architecture.text_models]
        found.update({one.name: one for one in chosen})
    return list(found.values())


def _there(release: Release, asked: Sequence[Architecture]) -> set[str]:
    """What is to be looked for in a release: one without the multimodal model that was asked for has nothing of it."""
    present = [one for one in asked if one.blocks or release.read(module_path(one.module)) is not None]
    return {one.name for one in with_text_models(present)}


def _package(architecture: Architecture) -> str:
    return architecture.module.partition(".")[0]


# ---- the numeric stage


def check_numeric(
    report: CheckReport,
    architectures: Sequence[Architecture],
    numbers: Numbers,
    progress: Advance = _unseen,
    *,
    beside: Sequence[Beside] = (NOTHING_ELSE,),
) -> CheckReport:
    """Run the parity contract for every release of a static report, and enter what is proven into a ledger.

    Args:
        report: of the static stage. An architecture that a release does not have is not run there.
        architectures: as the user named them.
        numbers: how.
        progress: is told what is done, and how many of how many architectures are.
        beside: what each release runs with, in turn.

    Returns:
        The report with a numeric entry for every architecture that had to be run, and with the proofs that were made.

    Raises:
        ReleaseEnvironmentError: there is no environment for a release, or it is not the one that was read.
        CacheError: the cache cannot be written; or the ledger, if that was asked for.
    """
    ledger = ledger_to_write(numbers.record)
    found: list[NumericEntry] = []
    tasks = {release: _to_check(release, report, architectures, numbers.unproven) for release in report.releases}
    total = sum(map(len, tasks.values())) * len(beside)
    for (release, names), others in itertools.product(tasks.items(), beside):
        if not names:
            continue
        text = f"{release.package} {release.version}{f' with {others}' if str(others) else ''}"
        progress(len(found), total, text=f"environment for {text}")
        environment = environment_of(release, numbers.seconds, others)
        text = f"numbers of {text}"
        progress(len(found), total, text=text)
        evidence = Evidence.of(release, report)
        missing = dict.fromkeys(names)
        elsewhere = {} if numbers.device == CPU else {"device": numbers.device}
        for told in environment.check(names, jobs=os.cpu_count() or 1, seconds=numbers.seconds, **elsewhere):
            outcome = evidence.weighed(told)
            missing.pop(outcome.architecture, None)
            found.append(NumericEntry(release, outcome, str(others)))
            if not elsewhere:
                _enter(ledger, outcome.proofs, required=numbers.record)
            progress(len(found), total, text=text)
        for name in missing:
            problems = {name: "no outcome came of it"}
            found.append(
                NumericEntry(release, ArchitectureOutcome(name, environment.versions, problems=problems), str(others))
            )
    proofs = {as_text_has_it(proof.key): proof for one in found for proof in one.outcome.proofs}
    entries = tuple(
        replace(entry, proof=proofs.get(key_of_finding(entry.finding), entry.proof)) for entry in report.entries
    )
    return replace(report, entries=entries, numeric=tuple(found))


def ledger_to_write(record: bool) -> Path:
    """Where proofs go: the user's ledger, or the shipped one of a checkout of patchkit if that was asked for.

    Raises:
        ReleaseEnvironmentError: it was asked for, and patchkit is installed and no checkout.
    """
    if not record:
        return user_ledger()
    if not (SHIPPED_LEDGER.parents[2] / "pyproject.toml").is_file():
        raise ReleaseEnvironmentError(
            "--record enters proofs into a checkout of patchkit, to be committed, and "
            f"{SHIPPED_LEDGER.parents[1]} is none"
        )
    return SHIPPED_LEDGER


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


def environment_of(release: Release, seconds: float = TIME_LIMIT, beside: Beside = NOTHING_ELSE) -> Environment:
    """The environment in which a release runs.

    Args:
        release: the installed one, one from an index, or a wheel or checkout.
        seconds: for pip, where there is no such environment yet.
        beside: other packages in it.

    Raises:
        ReleaseEnvironmentError: there can be none.
        CacheError: the cache cannot be written.
    """
    more: dict[str, Any] = {"beside": beside} if beside.requirements else {}
    if release.is_installed:
        return environment_for(None, seconds=seconds, **more) if more else running_environment()
    if release.origin == WHEEL:
        return environment_for(release.version, seconds=seconds, **more)
    return environment_for(Path(release.origin), expected=release.version, seconds=seconds, **more)


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
