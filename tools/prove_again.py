"""Prove the shipped ledger again from nothing: ``python -m tools.prove_again 5.23.0``; PEFT's layers: ``... peft``.

Every proof that was made with the given transformers releases must be made again, on this machine, in a cache that is
empty. A line that nothing proves any more, or that nobody ever proved, is an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from patchkit.adapters.peft_known import own_reader_proof, shipped_proofs
from patchkit.cache.storage import CACHE_VARIABLE, LEDGER
from patchkit.trust.ledger import SHIPPED_LEDGER, Key, Proof


def proofs_of(ledger: Path) -> dict[Key, Proof]:
    """The proofs of a ledger; none if there is no such file.

    Raises:
        ValueError: a line is no proof.
    """
    lines = ledger.read_text("utf-8").splitlines() if ledger.exists() else []
    return {proof.key: proof for proof in map(Proof.from_line, lines)}


def releases(ledger: Path = SHIPPED_LEDGER) -> list[str]:
    """The transformers releases with which the proofs of a ledger were made."""
    return sorted({proof.versions["transformers"] for proof in proofs_of(ledger).values()})


def missing(wanted: Iterable[str], again: Path, ledger: Path = SHIPPED_LEDGER) -> list[Key]:
    """The proofs of some releases that another ledger does not have."""
    found, chosen = proofs_of(again), set(wanted)
    return [
        key for key, one in proofs_of(ledger).items() if one.versions["transformers"] in chosen and key not in found
    ]


def peft_releases() -> list[str]:
    """The releases of PEFT with which the proofs of its layers were made."""
    return sorted({proof.versions["peft"] for proof in shipped_proofs().values()})


def peft_missing(cache: Path) -> list[tuple[str, str]]:
    """The shipped proofs of PEFT's layers that a cache does not have, by reader and source."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(cache)
    try:
        return [key for key in shipped_proofs() if own_reader_proof(*key) is None]
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before


def main(wanted: list[str]) -> int:
    """Run it: 0 if all was proven again, 1 if not, 2 for a release with which nothing was proven."""
    if wanted == ["peft"]:
        return _prove_peft()
    known = releases()
    if not wanted or not set(wanted) <= set(known):
        sys.stderr.write(f"say which releases: {' '.join(known)}; or peft\n")
        return 2
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, CACHE_VARIABLE: str(Path(cache) / "patchkit")}
        asked = [word for release in wanted for word in ("--transformers", release)]
        command = [sys.executable, "-m", "patchkit.cli.main", "check", "--all", *asked]
        code = subprocess.run(command, env=environment, check=False).returncode
        left = missing(wanted, Path(cache) / "patchkit" / LEDGER)
    for key in left:
        sys.stderr.write(f"not proven again: {key.class_name} {key.source}\n")
    return code or bool(left)


def _prove_peft() -> int:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "patchkit"
        asked = [word for release in peft_releases() for word in ("--peft", release)]
        command = [sys.executable, "-m", "patchkit.cli.main", "check", *asked]
        code = subprocess.run(command, env={**os.environ, CACHE_VARIABLE: str(cache)}, check=False).returncode
        left = peft_missing(cache)
    for reader, source in left:
        sys.stderr.write(f"not proven again: {reader} {source}\n")
    return code or bool(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
