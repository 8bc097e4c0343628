"""Hashes of Python sources: what was found by code that has changed since is not known any more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def digest(data: Any) -> str:
    """A hash of what JSON can write."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def sources_digest(folder: Path, without: Iterable[str] = ()) -> str:
    """A hash of the Python files of a package, by path and content.

    Args:
        folder: of the package.
        without: files and folders in it that do not count, as relative paths with slashes.

    Raises:
        OSError: a file cannot be read.
    """
    left = tuple(without)

    def wanted() -> Iterator[tuple[str, Path]]:
        for path in folder.rglob("*.py"):
            name = path.relative_to(folder).as_posix()
            if not any(name == one or name.startswith(f"{one}/") for one in left):
                yield name, path

    return digest([(name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in sorted(wanted())])
