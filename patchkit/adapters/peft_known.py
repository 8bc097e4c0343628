"""Whether the installed PEFT is one that a reader was proven with: asked once of each reader, when it is first used.

``peft_proofs.jsonl`` ships with the package: one JSON object a line for each text of each reader that ``patchkit
check --peft`` proved equal, in any release that has it. What a user's own check proves is kept in the cache. A text
that is in neither is read by nobody: the layers run upstream's code, and the report says why.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from patchkit.adapters.peft_sources import digest_of, pieces_of, sources_of
from patchkit.cache.storage import OUTCOMES, cache_directory, read_ours, warn_once, write_whole
from patchkit.errors import CacheError, PatchkitError
from patchkit.upstream.release import installed_release
from patchkit.upstream.wheels import PEFT

SHIPPED_PROOFS = Path(__file__).with_name("peft_proofs.jsonl")
"""The proofs of the package."""

_assumed = False


@dataclass(frozen=True)
class ReaderProof:
    """That a reader computes what a text of PEFT computes.

    Attributes:
        reader: its name, see :data:`patchkit.adapters.peft_sources.READERS`.
        source: :func:`patchkit.adapters.peft_sources.digest_of` all that it relies on.
        checks: the largest relative error of each case and check.
        versions: of transformers, torch, peft and Python, with which it was made.
        date: ``YYYY-MM-DD``.
    """

    reader: str
    source: str
    checks: Mapping[str, float]
    versions: Mapping[str, str]
    date: str

    def to_line(self) -> str:
        """The proof as one line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_line(cls, line: str | bytes) -> ReaderProof:
        """Read what :meth:`to_line` wrote.

        Raises:
            ValueError: it is not such a line.
        """
        try:
            data: dict[str, Any] = json.loads(line)
            checks = {str(name): float(error) for name, error in data["checks"].items()}
            versions = {str(name): str(version) for name, version in data["versions"].items()}
            proof = cls(str(data["reader"]), str(data["source"]), checks, versions, str(data["date"]))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not proof.checks or not all(math.isfinite(error) for error in proof.checks.values()):
            raise ValueError("it proves nothing")
        return proof


def shipped_proofs(path: Path | None = None) -> dict[tuple[str, str], ReaderProof]:
    """The proofs of the package by reader and source.

    Raises:
        CacheError: the file cannot be read, or a line of it is none; the line is named.
    """
    path = path or SHIPPED_PROOFS
    found: dict[tuple[str, str], ReaderProof] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise CacheError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            proof = ReaderProof.from_line(line)
        except ValueError as error:
            raise CacheError(f"{path}:{number} is damaged: {error}") from error
        found[proof.reader, proof.source] = proof
    return found


def find_reader_proof(reader: str, source: str) -> ReaderProof | None:
    """The shipped proof of a text of a reader, or the user's own; None if there is none that can be read."""
    try:
        return shipped_proofs().get((reader, source)) or own_reader_proof(reader, source)
    except CacheError as error:
        warn_once("PEFT proofs", f"{error}; what it proves has to be verified again")
        return None


def add_reader_proofs(proofs: Iterable[ReaderProof], shipped: Path | None = None) -> None:
    """Remember proofs: in the user's cache, or in the file of a checkout. A proof that is there stays.

    Raises:
        CacheError: they cannot be written.
    """
    if shipped is None:
        for proof in proofs:
            write_whole(_place(proof.reader, proof.source), proof.to_line())
        _why_unknown.cache_clear()
        return
    known = shipped_proofs(shipped)
    known = {(proof.reader, proof.source): proof for proof in proofs} | known
    write_whole(shipped, "".join(f"{known[key].to_line()}\n" for key in sorted(known)))
    _why_unknown.cache_clear()


def own_reader_proof(reader: str, source: str) -> ReaderProof | None:
    """The user's own proof of a text of a reader; None if there is none.

    Raises:
        CacheError: the cache cannot be read, or must not be believed.
    """
    try:
        proof = ReaderProof.from_line(read_ours(_place(reader, source)))
    except (FileNotFoundError, ValueError):
        return None
    return proof if (proof.reader, proof.source) == (reader, source) else None


def _place(reader: str, source: str) -> Path:
    key = hashlib.sha256(f"PEFT {reader} {source}".encode()).hexdigest()
    return cache_directory() / OUTCOMES / key[:2] / f"{key[2:]}.json"


# ---- the installed release


def known(reader: str) -> partial[str | None]:
    """The question of a formula: why the installed PEFT is none that this reader was proven with; None if it is."""
    return partial(_unknown, reader)


def assume_known() -> None:
    """Read every PEFT from now on, in this process: what is to be proven cannot be asked for its proof."""
    global _assumed
    _assumed = True


def _unknown(reader: str) -> str | None:
    return None if _assumed else _why_unknown(reader)


@cache
def _why_unknown(reader: str) -> str | None:
    try:
        release = installed_release(PEFT)
        source = digest_of(sources_of(pieces_of(release.read, reader)))
    except PatchkitError as error:
        return f"the source of the installed PEFT cannot be compared with what is proven: {error}"
    if find_reader_proof(reader, source) is not None:
        return None
    return (
        f"PEFT {release.version} is not known: what its {reader} computes is not proven; "
        "`patchkit check --peft installed` says what changed, and proves it"
    )
