"""The cache directory as a person sees it: what is in it, how much, and keeping it within bounds."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from patchkit.check.storage import cache_directory
from patchkit.errors import CacheError

SOURCES = "sources"
OUTCOMES = "outcomes"

LIMITS = {SOURCES: 1024 * 2**20, OUTCOMES: 64 * 2**20}
"""How many bytes each folder keeps; what was used longest ago goes first. A release is 4 to 6 MB, an outcome 1 kB."""

_ABANDONED_AFTER = 3600.0
"""Seconds after which an unfinished file belongs to a process that was killed."""


@dataclass(frozen=True)
class Entry:
    """One file or folder at the top of the cache directory.

    Attributes:
        name: its name.
        files: how many files it holds.
        size: their bytes.
        used: when one of them was last used, in seconds since 1970.
        limit: bytes that it may hold, or None if this file does not bound it.
    """

    name: str
    files: int
    size: int
    used: float
    limit: int | None


def entries() -> list[Entry]:
    """What the cache holds, by name; nothing if there is no cache yet."""
    root = cache_directory()
    if not root.is_dir():
        return []
    found = []
    for path in sorted(root.iterdir()):
        states = [state for file in _files(path) if (state := _state(file))]
        used = max((state.st_mtime for state in states), default=0.0)
        found.append(Entry(path.name, len(states), sum(s.st_size for s in states), used, LIMITS.get(path.name)))
    return found


def clear(name: str | None = None) -> int:
    """Delete an entry of the cache, or all of them, and return the bytes that it held.

    Raises:
        CacheError: there is no such entry, or it cannot be deleted.
    """
    known = {entry.name: entry for entry in entries()}
    if name is not None and name not in known:
        raise CacheError(f"the cache has no {name!r}; it has {', '.join(known) or 'nothing'}")
    chosen = [known[name]] if name is not None else list(known.values())
    for entry in chosen:
        path = cache_directory() / entry.name
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process clears it too
            continue
        except OSError as error:
            raise CacheError(f"{path} cannot be deleted: {error.strerror or error}") from error
    return sum(entry.size for entry in chosen)


def touch(path: Path) -> None:
    """Note that a file was used now. A cache that may only be read is no reason to fail."""
    with contextlib.suppress(OSError):
        os.utime(path)


def trim(name: str) -> None:
    """Keep a folder of the cache within its limit, and delete what killed processes left unfinished."""
    states = {file: state for file in _files(cache_directory() / name) if (state := _state(file))}
    abandoned = [
        file
        for file, state in states.items()
        if file.suffix == ".tmp" and time.time() - state.st_mtime > _ABANDONED_AFTER
    ]
    total = sum(state.st_size for state in states.values())
    oldest = sorted((file for file in states if file.suffix != ".tmp"), key=lambda file: states[file].st_mtime)
    for file in [*abandoned, *oldest]:
        if total <= LIMITS[name] and file not in abandoned:
            break
        total -= states[file].st_size
        with contextlib.suppress(OSError):  # another process may have deleted it
            file.unlink()


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path]


def _state(file: Path) -> os.stat_result | None:
    try:
        return file.lstat()
    except OSError:  # deleted meanwhile
        return None
