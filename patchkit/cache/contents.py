"""The cache directory as a person sees it: what is in it, how much, and keeping it within bounds.

Deleted is only what patchkit writes, known by its name, in a directory that patchkit marked. No link is followed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import filelock

from patchkit.cache.storage import (
    ENVIRONMENTS,
    FETCHING,
    LEDGER,
    OUTCOMES,
    SOURCES,
    TUNED,
    cache_directory,
    contained,
    is_abandoned,
    is_entry,
    is_known,
    locked,
    prepare_cache,
    sweep_unfinished,
    why_not_patchkits,
)
from patchkit.errors import CacheError

LIMITS = {SOURCES: 1024 * 2**20, OUTCOMES: 64 * 2**20}
"""How many bytes each folder keeps; what was used longest ago goes first. A release is 4 to 6 MB, an outcome 1 kB."""

_ENTRIES = (ENVIRONMENTS, LEDGER, OUTCOMES, SOURCES, TUNED)


@dataclass(frozen=True)
class CacheEntry:
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


@dataclass(frozen=True)
class Cleared:
    """What :func:`clear` did.

    Attributes:
        size: bytes that were deleted.
        left: what was left alone, because it is not patchkit's or is being made.
    """

    size: int
    left: tuple[Path, ...]


def entries() -> list[CacheEntry]:
    """What the cache holds, by name; nothing if there is no cache yet. What patchkit did not make is not looked at."""
    root = cache_directory()
    found = []
    for name in _ENTRIES:
        if not is_entry(root / name):
            continue
        states = [state for file in _files(root / name) if file.suffix != ".lock" and (state := _state(file))]
        if not states:
            continue
        used = max((state.st_mtime for state in states), default=0.0)
        found.append(CacheEntry(name, len(states), sum(s.st_size for s in states), used, LIMITS.get(name)))
    return found


def clear(name: str | None = None) -> Cleared:
    """Delete an entry of the cache, or all of them.

    Raises:
        CacheError: there is no such entry, it cannot be deleted, or the directory is not a cache of patchkit.
    """
    root = cache_directory()
    if why := why_not_patchkits(root):
        raise CacheError(f"{why}; nothing was deleted")
    known = [entry.name for entry in entries()]
    if name is not None and name not in known:
        raise CacheError(f"the cache has no {name!r}; it has {', '.join(known) or 'nothing'}")
    if known:
        prepare_cache()  # which marks one from before there were tags: half of it will be known too
    size, left = 0, []
    for chosen in [name] if name is not None else known:
        try:
            freed, kept = _clear_ledger(root / LEDGER) if chosen == LEDGER else _clear_folder(root / chosen, root)
        except FileNotFoundError:  # another process clears it too
            continue
        except CacheError:
            raise
        except OSError as error:
            raise CacheError(f"{root / chosen} cannot be deleted: {error.strerror or error}") from error
        size += freed
        left += kept
    return Cleared(size, tuple(left))


def _clear_ledger(path: Path) -> tuple[int, list[Path]]:
    with locked(path):
        sweep_unfinished(path)
        size = path.lstat().st_size
        path.unlink()
    return size, []


def _clear_folder(folder: Path, root: Path) -> tuple[int, list[Path]]:
    size, left = 0, []
    for path in reversed(contained(folder)):  # what lies in a folder before the folder
        if not is_known(path, root) or (_is_unfinished(path) and not is_abandoned(path)):
            left.append(path)
        elif path.suffix == ".lock":
            continue  # somebody may hold it: another one would not exclude that
        elif folder.name != ENVIRONMENTS:
            size += _delete(path)
        elif (freed := _delete_environment(path)) is None:
            left.append(path)
        else:
            size += freed
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()
    return size, sorted(left)


def _delete(path: Path) -> int:
    """Delete a file, a folder of outcomes if nothing is left in it, or all that was fetched into a folder."""
    size = _size(path)
    with contextlib.suppress(FileNotFoundError):
        if not path.is_dir():
            path.unlink()
        elif path.parent.name == SOURCES:
            shutil.rmtree(path)
        else:
            size = 0
            with contextlib.suppress(OSError):
                path.rmdir()
    return size


def _delete_environment(path: Path) -> int | None:
    """Delete an environment; None if somebody is making it."""
    lock = filelock.FileLock(path.with_name(f"{path.name.removesuffix('.building')}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return None
    try:
        size = _size(path)
        shutil.rmtree(path)  # which deletes links, and does not follow them
        return size
    finally:
        lock.release()


def touch(path: Path) -> None:
    """Note that a file was used now. A cache that may only be read is no reason to fail."""
    with contextlib.suppress(OSError):
        os.utime(path)


def trim(name: str) -> None:
    """Keep a folder of the cache within its limit, and delete what killed processes left unfinished in the cache."""
    try:
        root = cache_directory()
        if not root.is_dir() or why_not_patchkits(root):
            return
    except CacheError:
        return
    own = [path for path in contained(root / name) if is_known(path, root)]
    states = {path: state for path in own if (state := _state(path)) and not stat.S_ISDIR(state.st_mode)}
    unfinished = set(filter(_is_unfinished, own))
    for path in unfinished:
        if is_abandoned(path):
            states.pop(path, None)
            with contextlib.suppress(OSError):  # another process may have deleted it
                _delete(path)
    total = sum(state.st_size for state in states.values())
    for path in sorted(states.keys() - unfinished, key=lambda path: states[path].st_mtime):
        if total <= LIMITS[name]:
            break
        total -= states[path].st_size
        with contextlib.suppress(OSError):
            path.unlink()
    sweep_unfinished(root / LEDGER)
    for path in contained(root / ENVIRONMENTS):
        if path.name.endswith(".building") and is_known(path, root) and is_abandoned(path):
            with contextlib.suppress(OSError):
                _delete_environment(path)


def _is_unfinished(path: Path) -> bool:
    return path.suffix == ".tmp" or path.name.startswith(FETCHING)


def _size(path: Path) -> int:
    return sum(state.st_size for file in _files(path) if (state := _state(file)))


def _files(path: Path) -> list[Path]:
    """Every file below a folder, or the file itself. A folder that is a link is a file here."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]


def _state(file: Path) -> os.stat_result | None:
    try:
        return file.lstat()
    except OSError:  # deleted meanwhile
        return None
