"""Files of the cache: where they are, and writing them so that a second process or a kill never leaves half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from patchkit.errors import CacheError

CACHE_VARIABLE = "PATCHKIT_CACHE"
"""Environment variable that names another cache directory."""

_LOCK_SECONDS = 20.0


def cache_directory() -> Path:
    """The user's cache directory: ``$PATCHKIT_CACHE``, or the platform's own place. It need not exist."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("patchkit", appauthor=False))


@contextmanager
def locked(path: Path, *, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a path against other processes. The system frees it if this process dies.

    Args:
        path: what is guarded; the lock is the file ``<path>.lock`` beside it, whose directory is made.
        seconds: how long to wait.

    Raises:
        CacheError: the lock cannot be had, or its file cannot be made.
    """
    lock = filelock.FileLock(path.with_name(path.name + ".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except filelock.Timeout as error:
        raise CacheError(f"{path} is locked by another process; waited {seconds:.0f} s for it") from error
    except OSError as error:
        raise CacheError(f"{path.parent} cannot be written to: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file such that a reader sees the old one or the new one: beside it first, then renamed.

    Args:
        path: the file; its directory is made.
        content: bytes, or text that is written as UTF-8 with ``\\n`` as line end.

    Raises:
        CacheError: it cannot be written; the old file is unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives it to this user alone; a shipped ledger is read by all
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise CacheError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
