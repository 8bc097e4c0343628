"""What another run found of new releases: files that are read as data, and taken where they are what we would write.

A run that executes releases which nobody has reviewed may leave anything behind. So nothing of it is executed, and of
its records only the findings of releases that are new here are taken, of its ledger only proofs of those findings.
Verdicts, dates and versions are made anew.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from packaging.version import InvalidVersion, Version

import patchkit.rewrite.rules
from patchkit.arch.registry import architectures
from patchkit.check.numeric.outcomes import VERSIONED
from patchkit.check.results.proposal_files import DATE, LOG, are_names, ask_releases, lines_of, texts_of
from patchkit.check.static.findings import Finding, block_named
from patchkit.check.static.records import Record, Records
from patchkit.check.static.verdicts import PartOutcome
from patchkit.errors import ProposalError
from patchkit.escaping import is_name, one_line
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust.ledger import Key, Proof
from patchkit.upstream.release import module_path

RECORDS, LEDGER = "records.jsonl", "ledger.jsonl"

FILES = (RECORDS, LEDGER, LOG)
"""The files of a proposal."""

_LONGEST = 2000
_LEVELS = {"fused", "alone", "upstream"}
_HASH = re.compile(r"([0-9a-f]{64})?")


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


def read_proposal(
    folder: Path, records: Records, proofs: Mapping[Key, Proof], releases: Collection[str] = ()
) -> Proposal:
    """Read and check a folder with the three files of :data:`FILES`, and nothing else.

    Args:
        folder: where another run's files are.
        records: ours: a release that is among them is not taken.
        proofs: ours, likewise.
        releases: the releases that may be taken; any new one by default.

    Raises:
        ProposalError: something is not what patchkit would have written; the file and the line are named.
    """
    texts = texts_of(folder, FILES)
    known = set(records.releases())
    findings = tuple(finding for finding in _findings(texts[RECORDS]) if Version(finding.release) not in known)
    ask_releases(RECORDS, (finding.release for finding in findings), releases)
    keys = {Key(finding.owner, finding.source, REWRITE_VERSION) for finding in findings if finding.source}
    found = tuple(proof for proof in _proofs(texts[LEDGER]) if proof.key in keys and proof.key not in proofs)
    return Proposal(findings, found, texts[LOG])


def _findings(text: str) -> Iterator[Finding]:
    seen = set()
    for place, line in lines_of(RECORDS, text):
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
                "a rule is none": set(rules) <= rule_names(),
                "a reason is none": all(type(one) is str and len(one) <= _LONGEST for one in reasons),
            }.items()
            if not fine
        ),
        "",
    )


@lru_cache(maxsize=1)
def rule_names() -> frozenset[str]:
    """The names of the rules, which are those of their files. The rules want libcst, and nothing is rewritten here."""
    files = {one.name for one in pkgutil.iter_modules(patchkit.rewrite.rules.__path__)} - {"registry", "rule"}
    return frozenset(name.replace("_", "-") for name in files)


def _is_module_path(path: str) -> bool:
    module = path.removesuffix(".py").replace("/", ".")
    return path.startswith("transformers/") and is_name(module) and module_path(module) == path and path.isascii()


def _proofs(text: str) -> Iterator[Proof]:
    for place, line in lines_of(LEDGER, text):
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
    if not is_name(proof.key.class_name) or not DATE.fullmatch(proof.date):
        return "its class or date is none"
    if not are_names(proof.levels) or not set(proof.levels.values()) <= _LEVELS:
        return "its levels are none"
    if not are_names(proof.checks) or min(proof.checks.values()) < 0:
        return "its checks are none"
    fine = are_names(proof.versions) and set(VERSIONED) <= set(proof.versions)
    return "" if fine else "its versions are none"
