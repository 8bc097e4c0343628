"""What another run found of new releases: files that are read as data, and taken where they are what we would write.

A run that executes releases which nobody has reviewed may leave anything behind. So nothing of it is executed, and of
its records only the findings of releases that are new here are taken, of its ledger only proofs of those findings.
Verdicts, dates and versions are made anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import InvalidVersion, Version

from patchkit.arch.registry import architectures
from patchkit.check.static.findings import Finding, block_named
from patchkit.check.static.records import Record, Records
from patchkit.check.static.verdicts import PartOutcome
from patchkit.errors import ProposalError
from patchkit.escaping import is_name, one_line
from patchkit.rewrite import REWRITE_VERSION
from patchkit.rewrite.rules.registry import rules as known_rules
from patchkit.trust.ledger import Key, Proof
from patchkit.upstream.release import module_path

RECORDS, LEDGER, LOG = "records.jsonl", "ledger.jsonl", "watch.log"

FILES = {RECORDS: 16 * 2**20, LEDGER: 16 * 2**20, LOG: 16 * 2**20}
"""The files of a proposal, and how many bytes each may have."""

_MOST_RELEASES = 64
_LONGEST = 2000
_LEVELS = {"fused", "alone", "upstream"}
_HASH = re.compile(r"([0-9a-f]{64})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Proposal:
    """What is taken.

    Attributes:
        findings: of releases that are new.
        proofs: of those findings, of the numeric stage.
        log: what the run printed, as it is.
    """

    findings: tuple[Finding, ...]
    proofs: tuple[Proof, ...]
    log: str

    @property
    def newest(self) -> str:
        """The newest of the releases; empty if there is none."""
        return max((finding.release for finding in self.findings), key=Version, default="")


def read_proposal(folder: Path, records: Records, proofs: Mapping[Key, Proof]) -> Proposal:
    """Read and check a folder with the three files of :data:`FILES`, and nothing else.

    Args:
        folder: where another run's files are.
        records: ours: a release that is among them is not taken.
        proofs: ours, likewise.

    Raises:
        ProposalError: something is not what patchkit would have written; the file and the line are named.
    """
    texts = _texts(folder)
    known = set(records.releases())
    findings = tuple(finding for finding in _findings(texts[RECORDS]) if Version(finding.release) not in known)
    if len({finding.release for finding in findings}) > _MOST_RELEASES:
        raise ProposalError(f"{RECORDS} has more than {_MOST_RELEASES} new releases")
    keys = {Key(finding.owner, finding.source, REWRITE_VERSION) for finding in findings if finding.source}
    found = tuple(proof for proof in _proofs(texts[LEDGER]) if proof.key in keys and proof.key not in proofs)
    return Proposal(findings, found, texts[LOG])


def _texts(folder: Path) -> dict[str, str]:
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
        if set(entries) != set(FILES):
            raise ProposalError(f"{folder} has the files {sorted(entries)}; expected {sorted(FILES)}")
        for name, limit in FILES.items():
            if not entries[name].is_file(follow_symlinks=False) or entries[name].is_symlink():
                raise ProposalError(f"{name} is no ordinary file")
            if entries[name].stat(follow_symlinks=False).st_size > limit:
                raise ProposalError(f"{name} has more than {limit} bytes")
        texts = {name: (folder / name).read_bytes() for name in FILES}
        return {name: text.decode("utf-8", "replace" if name == LOG else "strict") for name, text in texts.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ProposalError(f"{folder} cannot be read: {error}") from error


def _lines(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not empty, each with its place."""
    return ((f"{name}:{number}", line) for number, line in enumerate(text.split("\n"), start=1) if line)


def _findings(text: str) -> Iterator[Finding]:
    seen = set()
    for place, line in _lines(RECORDS, text):
        try:
            finding = Record.from_line(line).finding
            wrong = _wrong_in(finding)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise ProposalError(f"{place} is no record: {type(error).__name__}: {error}") from error
        name = (finding.release, finding.architecture, finding.block, finding.class_name)
        if wrong := wrong or ("it stands there twice" if name in seen else ""):
            raise ProposalError(f"{place} is no record of ours: {wrong}")
        seen.add(name)
        shown = {
            part: PartOutcome(outcome.rules, tuple(one_line(reason) for reason in outcome.reasons))
            for part, outcome in finding.parts.items()
        }
        yield replace(finding, parts=shown)


def _wrong_in(finding: Finding) -> str:
    """What patchkit would not have written; empty if nothing. Types are checked first: JSON may hold any."""
    texts = (finding.release, finding.architecture, finding.block, finding.class_name, finding.owner, finding.path)
    if (
        not all(type(text) is str for text in (*texts, finding.source, finding.rewritten))
        or type(finding.line) is not int
    ):
        return "a field has another type"
    architecture = architectures().get(finding.architecture)
    if str(Version(finding.release)) != finding.release or architecture is None:
        return "its release or architecture is none"
    names = [block.class_name for block in architecture.blocks] or [""]
    parts = block_named(architecture, finding.block).parts if architecture.blocks and finding.block in names else ()
    rules = [rule for outcome in finding.parts.values() for rule in outcome.rules]
    reasons = [reason for outcome in finding.parts.values() for reason in outcome.reasons]
    return next(
        (
            what
            for what, fine in {
                "its block is none": finding.block in names,
                "its parts are not those of its block": tuple(finding.parts) == parts,
                "its class is no name": not names[0] or is_name(finding.class_name),
                "its owner is no name": not finding.owner or is_name(finding.owner),
                "its path is none of a module": _is_module_path(finding.path),
                "its line is none": 0 <= finding.line < 10**7,
                "a hash is none": bool(_HASH.fullmatch(finding.source) and _HASH.fullmatch(finding.rewritten)),
                "a rule is none": set(rules) <= {rule.name for rule in known_rules()},
                "a reason is none": all(type(one) is str and len(one) <= _LONGEST for one in reasons),
            }.items()
            if not fine
        ),
        "",
    )


def _is_module_path(path: str) -> bool:
    module = path.removesuffix(".py").replace("/", ".")
    return path.startswith("transformers/") and is_name(module) and module_path(module) == path and path.isascii()


def _proofs(text: str) -> Iterator[Proof]:
    for place, line in _lines(LEDGER, text):
        try:
            proof = Proof.from_line(line)
            for version in proof.versions.values():
                Version(version)
        except (ValueError, TypeError, InvalidVersion, RecursionError) as error:
            raise ProposalError(f"{place} is no proof: {type(error).__name__}: {error}") from error
        if wrong := _wrong_in_proof(proof):
            raise ProposalError(f"{place} is no proof of ours: {wrong}")
        yield proof


def _wrong_in_proof(proof: Proof) -> str:
    if not is_name(proof.key.class_name) or not _DATE.fullmatch(proof.date):
        return "its class or date is none"
    if not _names(proof.levels) or not set(proof.levels.values()) <= _LEVELS:
        return "its levels are none"
    if not _names(proof.checks) or min(proof.checks.values()) < 0:
        return "its checks are none"
    fine = _names(proof.versions) and {"transformers", "torch", "peft", "python"} <= set(proof.versions)
    return "" if fine else "its versions are none"


def _names(words: Iterable[str]) -> bool:
    return all(re.fullmatch(r"[\w ,.=+-]{1,80}", word, re.ASCII) for word in words)
