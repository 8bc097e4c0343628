"""Files of the cache: where they are, reading them, and writing them so that a kill never leaves half of one.

The cache directory is one that patchkit made, or found empty, and marked with a ``CACHEDIR.TAG``
(https://bford.info/cachedir/). In any other directory it writes and deletes nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from patchkit.cache.owners import is_closed, why_not_ours
from patchkit.errors import CacheError, PatchkitWarning

CACHE_VARIABLE = "PATCHKIT_CACHE"
"""Environment variable that names another cache directory."""

SOURCES = "sources"
OUTCOMES = "outcomes"
ENVIRONMENTS = "environments"
TUNED = "tuned"
LEDGER = "ledger.jsonl"

FETCHING = ".fetch-"
"""How the name of a folder in ``sources`` begins into which a wheel is fetched."""

TAG = "CACHEDIR.TAG"
_TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This directory is the cache of patchkit, which deletes files in it.\n"
    "# For information about cache directory tags see https://bford.info/cachedir/\n"
)

ABANDONED_AFTER = 3600.0
"""Seconds after which an unfinished file belongs to a process that was killed."""

_LOCK_SECONDS = 20.0
_FILE_LIMIT = 256 * 2**20
_TEMPORARY = r"[a-z0-9_]{8}\.tmp"  # as tempfile names what write_whole makes


def cache_directory() -> Path:
    """The user's cache directory: ``$PATCHKIT_CACHE``, or the platform's own place. It need not exist.

    Raises:
        CacheError: the platform has no place, because this user has no home.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(os.path.abspath(chosen))
    try:
        return Path(platformdirs.user_cache_dir("patchkit", appauthor=False))
    except RuntimeError as error:
        raise CacheError(f"there is no home directory ({error}); {CACHE_VARIABLE} names a cache directory") from error


# ---- whose directory it is


def prepare_cache() -> Path:
    """The cache directory, made and marked if it was not there.

    Raises:
        CacheError: it cannot be made or written to, is not this user's, or holds what is not patchkit's.
    """
    root = cache_directory()
    why = why_not_patchkits(root)
    if why:
        raise CacheError(f"{why}; {CACHE_VARIABLE} names another cache directory: a new or an empty one")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (root / TAG).exists():
            _write_beside(root / TAG, _TAG_TEXT.encode())
    except OSError as error:
        raise CacheError(f"{root} cannot be written to: {error.strerror or error}") from error
    return root


def why_not_patchkits(root: Path) -> str | None:
    """Why a directory must not be used as the cache; None if it is one, or can become one.

    It is one if it has patchkit's tag. One from before there were tags is known by its content: it has nothing else.

    Raises:
        CacheError: it cannot be read.
    """
    try:
        names = sorted(os.listdir(root))
        state = root.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{root} cannot be read: {error.strerror or error}") from error
    if why := why_not_ours(state, root):
        return why
    if not names or is_marked(root):
        return None
    foreign = [root / name for name in names if not is_entry(root / name)]
    for name in _KNOWN:
        foreign += [path for path in contained(root / name) if not is_known(path, root)]
    if not foreign or is_marked(root):  # another process may have marked it while this one looked
        return None
    return f"{root} is not a cache of patchkit: it has no {TAG} of it, and holds {foreign[0].relative_to(root)}"


def is_marked(root: Path) -> bool:
    """Whether a directory has patchkit's tag: an ordinary file, says the specification, and no symbolic link."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG((root / TAG).lstat().st_mode):
            return (root / TAG).read_bytes().splitlines()[:2] == _TAG_TEXT.encode().splitlines()[:2]
    return False


_KNOWN = {
    SOURCES: re.compile(r"(?:transformers|peft)-(?:file-[0-9a-f]{32}|[0-9][0-9a-z.!+-]*)\.zip|\.fetch-[a-z0-9_]{8}"),
    OUTCOMES: re.compile(r"[0-9a-f]{2}(?:/[0-9a-f]{62}\.json)?"),
    ENVIRONMENTS: re.compile(r"[^/]+-[0-9a-f]{12}(?:\.building|\.lock)?"),
    TUNED: re.compile(r"[0-9a-f]{64}\.json"),
}


def is_entry(path: Path) -> bool:
    """Whether patchkit makes what has this name at the top of its cache directory. Its tag and locks count too."""
    if path.name in _KNOWN:
        return path.is_dir() and not path.is_symlink()
    own = rf"{re.escape(LEDGER)}|{re.escape(LEDGER)}\.lock|{TAG}|\.(?:{re.escape(LEDGER)}|{TAG})\.{_TEMPORARY}"
    return re.fullmatch(own, path.name) is not None and not path.is_symlink() and path.is_file()


def is_known(path: Path, root: Path) -> bool:
    """Whether patchkit makes what has this name inside of an entry of the cache directory ``root``."""
    entry, _, inner = path.relative_to(root).as_posix().partition("/")
    pattern = _KNOWN.get(entry)
    if pattern is None or path.is_symlink():
        return False
    folder, _, name = inner.rpartition("/")
    unfinished = re.fullmatch(rf"\.(.+)\.{_TEMPORARY}", name)
    return pattern.fullmatch(f"{folder}/{unfinished[1]}".lstrip("/") if unfinished else inner) is not None


def contained(folder: Path) -> list[Path]:
    """What lies in an entry of the cache, with the content of the folders of outcomes. Links are never followed."""
    found = _listed(folder)
    if folder.name == OUTCOMES:
        found += [inner for path in found if path.is_dir() for inner in _listed(path)]
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return [] if folder.is_symlink() else sorted(folder.iterdir())
    except OSError:  # deleted meanwhile, or not a folder
        return []


# ---- reading


def read_ours(path: Path) -> bytes:
    """A file of the cache that nobody else can have written.

    Raises:
        FileNotFoundError: there is none.
        CacheError: it cannot be read, is too large, or must not be believed.
    """
    try:
        closed = False
        for folder in _folders(path):
            state = folder.stat()
            if why := why_not_ours(state, folder, closed=closed):
                raise CacheError(why)
            closed |= is_closed(state)
        # Without waiting for somebody to write, if it is a pipe.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            state = os.fstat(file.fileno())
            if why := why_not_ours(state, path, closed=closed):
                raise CacheError(why)
            if not stat.S_ISREG(state.st_mode) or state.st_size > _FILE_LIMIT:
                raise CacheError(f"{path} is no file, or is larger than {_FILE_LIMIT >> 20} MiB")
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror or error}") from error


def _folders(path: Path) -> list[Path]:
    """The cache directory and what leads from it to a file; elsewhere the folder of the file alone."""
    root = cache_directory()
    if not path.is_relative_to(root):
        return [path.parent]
    return [folder for folder in reversed(path.parents) if folder.is_relative_to(root)]


# ---- writing


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
        _make_folder(path.parent)
        lock.acquire(timeout=seconds)
    except filelock.Timeout as error:
        raise CacheError(f"{path} is locked by another process; waited {seconds:.0f} s for it") from error
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"{path.parent} cannot be written to: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file such that a reader sees the old one or the new one: beside it first, then renamed.

    What a process that was killed left beside this very file goes at the same time.

    Args:
        path: the file; its directory is made.
        content: bytes, or text that is written as UTF-8 with ``\\n`` as line end.

    Raises:
        CacheError: it cannot be written; the old file is unchanged.
    """
    try:
        _make_folder(path.parent)
        _write_beside(path, content.encode("utf-8") if isinstance(content, str) else content)
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(f"{path} cannot be written: {error.strerror or error}") from error
    sweep_unfinished(path)


def _write_beside(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives it to this user alone; a shipped ledger is read by all
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep_unfinished(path: Path) -> None:
    """Delete what writers of this file left beside it when they were killed; those at work keep theirs."""
    unfinished = re.compile(rf"\.{re.escape(path.name)}\.{_TEMPORARY}")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if unfinished.fullmatch(entry.name) and is_abandoned(Path(entry.path)):
                os.unlink(entry.path)


def is_abandoned(path: Path) -> bool:
    """Whether nobody has written to a file or folder for so long that its writer must be dead."""
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_AFTER
    except OSError:  # deleted meanwhile
        return False


def _make_folder(folder: Path) -> None:
    """Make a folder; inside of the cache for this user alone, whatever the process lets others do by default."""
    if not folder.is_relative_to(cache_directory()):
        folder.mkdir(parents=True, exist_ok=True)
        return
    root = prepare_cache()
    for place in [*reversed(folder.relative_to(root).parents[:-1]), folder.relative_to(root)]:
        (root / place).mkdir(mode=0o700, exist_ok=True)


# ---- going on without


_said: set[tuple[str, str]] = set()


def warn_once(what: str, message: str) -> None:
    """Warn of what a cache directory cannot do, once a run. Processes that a command starts leave it to the command.

    Args:
        what: is not done, in a word; only the first reason is told.
        message: for the user.
    """
    about = what, os.environ.get(CACHE_VARIABLE, "")
    if about not in _said and multiprocessing.parent_process() is None:
        _said.add(about)
        warnings.warn(message, PatchkitWarning, stacklevel=3)
