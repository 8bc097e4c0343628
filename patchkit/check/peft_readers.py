"""What ``patchkit check --peft`` does: PEFT's layers are read, compared and proven, as transformers' blocks are.

The static stage compares what each reader relies on with the texts that are proven. The numeric stage runs the
contract of :mod:`patchkit.check.numeric.peft_contract` beside the installed transformers, in an environment that has
the release.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from patchkit.adapters.peft_known import SHIPPED_PROOFS, ReaderProof, add_reader_proofs, find_reader_proof
from patchkit.adapters.peft_sources import Piece, pieces_of
from patchkit.check import TIME_LIMIT
from patchkit.check.numeric.environments import Beside, Environment, environment_for
from patchkit.check.numeric.reader_outcomes import ReaderOutcome
from patchkit.check.results.peft import PeftReport, ReaderEntry, ReaderNumbers
from patchkit.check.static.peft_layers import ReaderFinding, ReaderRecords, changes_since, findings_in
from patchkit.errors import CacheError, PatchkitError, PatchkitWarning, WorkerLostError
from patchkit.processes.interpreters import empty_folder
from patchkit.processes.workers import ask_all
from patchkit.upstream.kept_releases import fetch
from patchkit.upstream.release import WHEEL, Release
from patchkit.upstream.wheels import PEFT

_CONTRACT = "patchkit.check.numeric.peft_contract:answer"
_LIBRARY = "bitsandbytes"
_QUANTISED = frozenset({"Linear4bit", "Linear8bitLt"})


def beside_of(peft: Release | None, torch: str = "") -> Beside:
    """What an environment is to have beside its transformers.

    Args:
        peft: a release of PEFT; None for the installed one.
        torch: a version; empty for the installed one.
    """
    if peft is None or peft.is_installed:
        return Beside(torch=torch)
    asked = f"{PEFT}=={peft.version}" if peft.origin == WHEEL else str(Path(peft.origin).resolve())
    return Beside(asked, peft.version, torch)


# ---- the static stage


def check_peft(releases: Sequence[Release], records: ReaderRecords, wheels: Path | None = None) -> PeftReport:
    """The static stage.

    Args:
        releases: of PEFT.
        records: what is known of releases.
        wheels: a folder from which the wheel of a recorded release is taken, to show what changed; not from an index.

    Raises:
        ReleaseError: a release cannot be read.
    """
    before = lru_cache(partial(_recorded_pieces, wheels=wheels))
    entries = [_entry(release, finding, records, before) for release in releases for finding in findings_in(release)]
    return PeftReport(tuple(releases), tuple(entries))


def _entry(
    release: Release,
    finding: ReaderFinding,
    records: ReaderRecords,
    before: Callable[[str, str], Mapping[str, Piece]],
) -> ReaderEntry:
    if finding.reason:
        return ReaderEntry(release, finding, "unreadable", "", (), None)
    if not finding.pieces:
        return ReaderEntry(release, finding, "absent", "", (), None)
    record = records.nearest(finding)
    since = record.release if record else ""
    proof = find_reader_proof(finding.reader, finding.source)
    changes = changes_since(finding, record, lambda: before(since, finding.reader))
    return ReaderEntry(release, finding, "known" if proof else "changed", since, tuple(changes), proof)


def _recorded_pieces(release: str, reader: str, wheels: Path | None) -> Mapping[str, Piece]:
    """What a reader relies on in a recorded release; nothing if that cannot be had: then no diff is shown."""
    try:
        return pieces_of(fetch(release, wheels, PEFT).read, reader)
    except PatchkitError:
        return {}


# ---- the numeric stage


def prove_peft(
    report: PeftReport,
    *,
    torch: Sequence[str] = (),
    unproven: bool = False,
    record: bool = False,
    seconds: float = TIME_LIMIT,
    progress: Callable[..., None] = lambda *_, **__: None,
) -> PeftReport:
    """Run the contract of every reader of a static report, and remember what is proven.

    Args:
        report: of the static stage.
        torch: versions of torch to run beside; the installed one by default.
        unproven: leave out what is proven already, for the very same text.
        record: enter proofs into the file of this checkout, to be committed, and not into the user's cache.
        seconds: for pip and one release, and for one reader.
        progress: is told how many of how many readers are done.

    Raises:
        ReleaseEnvironmentError: there is no environment for a release.
        CacheError: the cache cannot be written; or the file of proofs, if that was asked for.
    """
    tasks = [
        (release, version, [entry for entry in report.entries if entry.release == release and _to_run(entry, unproven)])
        for release in report.releases
        for version in torch or [""]
    ]
    total = sum(len(entries) for *_, entries in tasks)
    numeric: list[ReaderNumbers] = []
    for release, version, entries in tasks:
        if unproven:  # releases share texts
            shown = {(one.outcome.reader, one.outcome.source) for one in numeric if not one.failed}
            entries = [entry for entry in entries if (entry.finding.reader, entry.finding.source) not in shown]
        if not entries:
            continue
        progress(len(numeric), total, text=f"environment for PEFT {release.version}")
        environment = environment_for(None, seconds=seconds, beside=beside_of(release, version))
        for outcome in _outcomes(
            environment, {entry.finding.reader: entry.finding.source for entry in entries}, seconds
        ):
            numeric.append(ReaderNumbers(release, environment.versions["transformers"], outcome))
            progress(len(numeric), total, text=f"layers of PEFT {release.version}")
    proofs = [one.outcome.proof for one in numeric]
    made = {(proof.reader, proof.source): proof for proof in proofs if proof is not None}
    _remember(list(made.values()), record=record)
    proven = (
        replace(one, proof=one.proof or made.get((one.finding.reader, one.finding.source))) for one in report.entries
    )
    return replace(report, entries=tuple(proven), numeric=tuple(numeric))


def _to_run(entry: ReaderEntry, unproven: bool) -> bool:
    """What is proven and cannot be run here is left to its proof."""
    if not entry.finding.pieces or (entry.proof and unproven):
        return False
    return entry.finding.reader not in _QUANTISED or importlib.util.find_spec(_LIBRARY) is not None or not entry.proof


def _outcomes(environment: Environment, sources: Mapping[str, str], seconds: float) -> Iterator[ReaderOutcome]:
    """The outcome of each reader, as soon as it is there, if it is one of the text that was read.

    A process that dies, hangs, or says what cannot be, is a problem of its reader.
    """
    readers = list(sources)
    with empty_folder() as folder:
        kind = environment.kind(folder, _CONTRACT, seconds)
        if not kind.like_this:
            kind = replace(kind, shown=(*kind.shown, _LIBRARY))  # hidden, because transformers does not need it
        requests = [json.dumps({"reader": reader}).encode() for reader in readers]
        for index, said in ask_all(kind, requests, min(os.cpu_count() or 1, len(readers))):
            reader = readers[index]
            yield _believed(reader, sources[reader], environment, said)


def _believed(reader: str, source: str, environment: Environment, said: bytes | WorkerLostError) -> ReaderOutcome:
    nothing = ReaderOutcome(reader, source, environment.versions)
    if isinstance(said, WorkerLostError):
        return replace(nothing, problem=str(said))
    try:
        outcome = ReaderOutcome.from_json(said)
    except ValueError as error:
        return replace(nothing, problem=f"its process sent what is no outcome: {error}")
    if outcome.reader != reader or dict(outcome.versions) != dict(environment.versions):
        return replace(nothing, problem=f"its process ran {outcome.reader} with {dict(outcome.versions)}")
    if outcome.source != source:
        return replace(nothing, problem="the text that ran is not the one that was read")
    return outcome


def _remember(proofs: Sequence[ReaderProof], *, record: bool) -> None:
    if not proofs:
        return
    try:
        add_reader_proofs(proofs, SHIPPED_PROOFS if record else None)
    except CacheError as error:
        if record:
            raise
        warnings.warn(f"what was proven is not remembered: {error}", PatchkitWarning, stacklevel=2)
