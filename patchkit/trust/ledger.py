"""The ledger: what is proven is recorded, what is not proven is not trusted.

A proof belongs to one class, the hash of its normalised source, the version of the rewriter, and, where a plugin
describes the class otherwise than patchkit does, the names in that description. Two files hold proofs:

* ``patchkit/trust/ledger.jsonl``, which ships with the package: what ``patchkit check`` proved, in full;
* ``ledger.jsonl`` in the user's cache directory: what ``patchkit.apply`` verified on the spot.

Each is one JSON object a line, sorted by class, hash and rewriter, so that two branches that add proofs merge line by
line. A line that cannot be read is left out, with a warning: its class is verified again, and nothing else is lost.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from patchkit.cache.storage import LEDGER, cache_directory, locked, read_ours, warn_once, write_whole
from patchkit.errors import CacheError, PatchkitWarning

Stage = Literal["numeric", "spot"]
"""``numeric``: the parity contract on a tiny model. ``spot``: its short form, at the time of ``patchkit.apply``."""

SHIPPED_LEDGER = Path(__file__).with_name("ledger.jsonl")
"""The ledger of the package."""

USER_LIMIT = 4096
"""Proofs that the user's ledger keeps; the oldest go first. A proof is about 600 bytes."""


class Key(NamedTuple):
    """What a proof is of.

    Attributes:
        class_name: qualified name of the class whose body defines ``forward``.
        source: hash of its source, see :mod:`patchkit.upstream.identity`.
        rewrite: ``REWRITE_VERSION`` of the rewriter.
        outside: hash of the code elsewhere that the proof relies on, see :mod:`patchkit.trust.outside`; empty for most
            classes. Text alone does not say it, so the static stage knows only proofs for which it is empty.
        description: empty where the class is described by patchkit's own architecture file; else the names that a
            plugin gives its projections, see :func:`patchkit.arch.registry.foreign_description`.
    """

    class_name: str
    source: str
    rewrite: int
    outside: str = ""
    description: str = ""


@dataclass(frozen=True)
class Proof:
    """That the patched class gave upstream's numbers.

    Attributes:
        key: what was proven.
        stage: how.
        levels: the level at which each part of the class ran: ``{"qkv": "fused", "o": "fused"}``.
        checks: the largest error of each check that passed: relative errors in float32, and for low precision the ratio
            to upstream's own error. The limits are those of :mod:`patchkit.testing.parity`.
        versions: of ``transformers``, ``torch``, ``peft`` and ``python``. The same source in another transformers
            release is covered by this proof, which was nevertheless made with these.
        date: day of the proof, ``YYYY-MM-DD``.
    """

    key: Key
    stage: Stage
    levels: Mapping[str, str] = field(hash=False)
    checks: Mapping[str, float] = field(hash=False)
    versions: Mapping[str, str] = field(hash=False)
    date: str

    def to_line(self) -> str:
        """The proof as one line of a ledger, without line end."""
        data = asdict(self)
        key = data.pop("key")
        data = {"class": key[0], "source": key[1], "rewrite": key[2], **data}
        if key[3]:
            data["outside"] = key[3]
        if key[4]:
            data["description"] = key[4]
        data["checks"] = {name: float(f"{error:.2g}") for name, error in self.checks.items()}
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_line(cls, line: str) -> Proof:
        """Read what :meth:`to_line` wrote.

        Raises:
            ValueError: saying what is wrong with it.
        """
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")
        try:
            key = Key(
                _text(data["class"]),
                _text(data["source"]),
                data["rewrite"],
                _text(data.get("outside", "")),
                _text(data.get("description", "")),
            )
            proof = cls(
                key,
                data["stage"],
                _mapping(data["levels"], str),
                _mapping(data["checks"], float),
                _mapping(data["versions"], str),
                _text(data["date"]),
            )
        except KeyError as error:
            raise ValueError(f"it lacks {error.args[0]!r}") from error
        if type(key.rewrite) is not int or not re.fullmatch(r"[0-9a-f]{64}", key.source):
            raise ValueError("its source or rewrite is none")
        if not re.fullmatch(r"([0-9a-f]{64})?", key.outside):
            raise ValueError("its outside is none")
        if proof.stage not in get_args(Stage) or not proof.checks:
            raise ValueError("its stage or checks are none")
        return proof


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _mapping(value: Any, kind: type) -> dict[str, Any]:
    kinds = (float, int) if kind is float else (kind,)
    if not isinstance(value, dict) or not all(type(item) in kinds for item in value.values()):
        raise ValueError(f"{value!r} does not map names to {kind.__name__}")
    if kind is float and not all(_is_finite(item) for item in value.values()):
        raise ValueError(f"it holds an error that is not finite: {list(value)!r}")
    return value


def _is_finite(number: float) -> bool:
    """Whether this is a finite float, or an integer that is one: JSON's have any number of digits."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def user_ledger() -> Path:
    """The ledger in the user's cache directory. It need not exist."""
    return cache_directory() / LEDGER


_read: dict[Path, tuple[tuple[int, int, int], dict[Key, Proof]]] = {}


def read_proofs(path: Path) -> Mapping[Key, Proof]:
    """Every proof of a ledger file; none if there is no such file. Read again only when the file has changed.

    Lines that are no proofs are left out, and a file that cannot be read counts as none, each with one
    :class:`~patchkit.errors.PatchkitWarning`.
    """
    try:
        return _load(path)
    except CacheError as error:
        warn_once(str(path), f"{error}; what it proves has to be verified again")
        return {}


def _load(path: Path) -> dict[Key, Proof]:
    try:
        state = path.stat()
        mark = (state.st_mtime_ns, state.st_size, state.st_ino)
        if path in _read and _read[path][0] == mark:
            return _read[path][1]
        # The shipped ledger is as trusted as the code beside it, whoever installed them; the user's is the user's own.
        data = path.read_bytes() if path == SHIPPED_LEDGER else read_ours(path)
        text = data.decode("utf-8", errors="replace")
    except CacheError as error:
        raise CacheError(f"the ledger cannot be believed or read: {error}") from error
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CacheError(f"the ledger {path} cannot be read: {error.strerror or error}") from error
    proofs = _parse(text, path)
    _read[path] = (mark, proofs)
    return proofs


def _parse(text: str, path: Path) -> dict[Key, Proof]:
    proofs: dict[Key, Proof] = {}
    wrong: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            proof = Proof.from_line(line)
        except (ValueError, RecursionError) as error:
            wrong.append(f"line {number}: {error}")
        else:
            proofs[proof.key] = _better(proofs.get(proof.key), proof)
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        _warn(f"the ledger {path} has {len(wrong)} damaged lines, which are ignored ({wrong[0]}{more})")
    return proofs


def find_proof(key: Key) -> Proof | None:
    """The proof of a class in the shipped ledger or in the user's, or None."""
    if shipped := read_proofs(SHIPPED_LEDGER).get(key):
        return shipped
    try:
        return read_proofs(user_ledger()).get(key)
    except CacheError:  # a user without a home has no ledger
        return None


def add_proofs(path: Path, proofs: Iterable[Proof], *, limit: int | None = None) -> None:
    """Merge proofs into a ledger file, under its lock, and replace the file as a whole.

    Of two proofs of one thing, that with more checks stays; of equals, the older one, so that proving again changes
    nothing.

    Args:
        path: the file; made if it does not exist.
        proofs: what to add.
        limit: how many to keep; the oldest go first.

    Raises:
        CacheError: it cannot be read, written or locked; the file is as it was.
    """
    with locked(path):
        merged = dict(_load(path))
        for proof in proofs:
            merged[proof.key] = _better(merged.get(proof.key), proof)
        kept = sorted(merged.values(), key=lambda proof: proof.date, reverse=True)[:limit]
        lines = [proof.to_line() for proof in sorted(kept, key=lambda proof: proof.key)]
        write_whole(path, "".join(f"{line}\n" for line in lines))


def _better(first: Proof | None, second: Proof) -> Proof:
    return second if first is None else min(first, second, key=_rank)


def _rank(proof: Proof) -> tuple[bool, int, str, list[tuple[str, str]]]:
    """Lowest for the best: the numeric stage, more checks, the older one."""
    return proof.stage != "numeric", -len(proof.checks), proof.date, sorted(proof.versions.items())


def _warn(message: str) -> None:
    warnings.warn(message, PatchkitWarning, stacklevel=4)
