"""What another run found of new releases of PEFT: read as data, and taken where patchkit would have written it.

As :mod:`patchkit.check.results.proposal` does for transformers, with one difference: the files are small and each line
has one form, so a line has to be the very text that patchkit writes of what it says, and what is here already has to be
there unchanged. Dates and patchkit's version are made anew.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from patchkit.adapters.peft_known import ReaderProof
from patchkit.adapters.peft_sources import READERS
from patchkit.check.numeric.outcomes import VERSIONED
from patchkit.check.results.proposal_files import DATE, LOG, are_names, ask_releases, lines_of, texts_of
from patchkit.check.static.peft_layers import ReaderRecord, ReaderRecords
from patchkit.errors import ProposalError

PEFT_RECORDS, PEFT_PROOFS = "peft_records.jsonl", "peft_proofs.jsonl"

PEFT_FILES = (PEFT_RECORDS, PEFT_PROOFS, LOG)
"""The files of a proposal of PEFT's layers."""

AGAIN = "nothing is taken; run `patchkit watch --peft --write` again, on this very checkout"

LARGEST_ERROR = 1e-5
"""No contract of a reader allows a larger relative error."""

_HASH = re.compile(r"[0-9a-f]{64}")
_HASHES = re.compile(r"[0-9a-f]{64}(\+[0-9a-f]{64}){0,15}")  # a property has several definitions


@dataclass(frozen=True)
class PeftProposal:
    """What is taken.

    Attributes:
        records: of releases that are new, one for each reader.
        proofs: of the texts of those records.
        log: what the run printed, as it is.
    """

    records: tuple[ReaderRecord, ...]
    proofs: tuple[ReaderProof, ...]
    log: str

    @property
    def newest(self) -> str:
        """The newest of the releases; empty if there is none."""
        return max((record.release for record in self.records), key=Version, default="")


def read_peft_proposal(
    folder: Path,
    records: ReaderRecords,
    proofs: Mapping[tuple[str, str], ReaderProof],
    releases: Collection[str] = (),
) -> PeftProposal:
    """Read and check a folder with the files of :data:`PEFT_FILES`, and nothing else.

    Args:
        folder: where another run's files are.
        records: ours, which have to be among them as they are.
        proofs: ours, likewise.
        releases: the releases that may be taken; any new one by default.

    Raises:
        ProposalError: something is not what patchkit would have written; the file and the line are named, and what to
            do.
    """
    texts = texts_of(folder, PEFT_FILES)
    known = set(map(str, records.releases()))
    found = _records(texts[PEFT_RECORDS])
    for ours in records.entries:
        there = found.get((ours.release, ours.reader))
        if there is None or list(there.sources.items()) != list(ours.sources.items()):
            what = "lacks" if there is None else "has otherwise"
            raise ProposalError(f"{PEFT_RECORDS} {what} {ours.reader} of {ours.release}, which is recorded: {AGAIN}")
    new = {name: record for name, record in found.items() if record.release not in known}
    ask_releases(PEFT_RECORDS, (release for release, _ in new), releases)
    for release in {release for release, _ in new}:
        missing = [reader for reader in READERS if (release, reader) not in new]
        if missing:
            raise ProposalError(f"{PEFT_RECORDS} has no line of {missing[0]} of {release}: {AGAIN}")
    if len(found) > len(new) + len(records.entries):
        raise ProposalError(f"{PEFT_RECORDS} has more lines of a recorded release than are recorded: {AGAIN}")
    return PeftProposal(tuple(new.values()), _new_proofs(texts[PEFT_PROOFS], new.values(), proofs), texts[LOG])


def _records(text: str) -> dict[tuple[str, str], ReaderRecord]:
    found: dict[tuple[str, str], ReaderRecord] = {}
    for place, line in lines_of(PEFT_RECORDS, text):
        try:
            record = ReaderRecord.from_line(line)
        except ValueError as error:
            raise ProposalError(f"{place} is no record: {error}; {AGAIN}") from error
        name = (record.release, record.reader)
        wrong = "it is not written as patchkit writes it" if record.to_line() != line else _wrong_in_record(record)
        if wrong := wrong or ("it stands there twice" if name in found else ""):
            raise ProposalError(f"{place} is no record of ours: {wrong}; {AGAIN}")
        found[name] = record
    return found


def _wrong_in_record(record: ReaderRecord) -> str:
    """What patchkit would not have written; empty if nothing."""
    if record.reader not in READERS:
        return "its reader is none"
    if Version(record.release).is_prerelease:
        return "its release is a pre-release"
    names = [name for listed in READERS[record.reader].values() for name in listed.split()]
    there = list(record.sources)
    if there != [name for name in names if name in record.sources]:
        return "its functions are not those of its reader, in their order"
    if there and there[0] != names[0]:
        return f"it lacks {names[0]}, without which there is no such layer"
    return "" if all(map(_HASHES.fullmatch, record.sources.values())) else "a hash is none"


def _new_proofs(
    text: str, records: Collection[ReaderRecord], ours: Mapping[tuple[str, str], ReaderProof]
) -> tuple[ReaderProof, ...]:
    found: dict[tuple[str, str], ReaderProof] = {}
    texts = {(record.reader, record.source) for record in records if record.sources}
    releases = {record.release for record in records}
    for place, line in lines_of(PEFT_PROOFS, text):
        try:
            proof = ReaderProof.from_line(line)
        except ValueError as error:
            raise ProposalError(f"{place} is no proof: {error}; {AGAIN}") from error
        key = (proof.reader, proof.source)
        if key in found:
            wrong = "it stands there twice"
        elif key in ours:
            wrong = "" if proof == ours[key] else "it is recorded, and otherwise"
        elif key not in texts:
            wrong = "it is of no text of a new release"
        else:
            wrong = "it is not written as patchkit writes it" if proof.to_line() != line else _wrong_in(proof, releases)
        if wrong:
            raise ProposalError(f"{place} is no proof of ours: {wrong}; {AGAIN}")
        found[key] = proof
    for key in ours.keys() - found.keys():
        raise ProposalError(f"{PEFT_PROOFS} lacks a proof of {key[0]} that is recorded: {AGAIN}")
    return tuple(proof for key, proof in found.items() if key not in ours)


def _wrong_in(proof: ReaderProof, releases: Collection[str]) -> str:
    """What patchkit would not have written of a new text; empty if nothing."""
    if proof.reader not in READERS or not _HASH.fullmatch(proof.source) or not DATE.fullmatch(proof.date):
        return "its reader, hash or date is none"
    if not are_names(proof.checks, ":") or not all(0 <= error <= LARGEST_ERROR for error in proof.checks.values()):
        return f"its checks are none, or an error is not within 0 and {LARGEST_ERROR:g}"
    try:
        fine = all(str(Version(version)) == version for version in proof.versions.values())
    except InvalidVersion:
        fine = False
    if not fine or set(proof.versions) != set(VERSIONED):
        return "its versions are none"
    peft = proof.versions["peft"]
    return "" if peft in releases else f"it was made with PEFT {peft}, which is not new"
