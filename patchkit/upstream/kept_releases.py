"""Releases that were fetched, each kept in the cache as one small archive of its model files.

An archive is written beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from packaging.version import Version

from patchkit.cache.contents import touch, trim
from patchkit.cache.storage import FETCHING, SOURCES, cache_directory, prepare_cache, why_not_patchkits, write_whole
from patchkit.errors import CacheError, ReleaseError, WheelError
from patchkit.upstream.index import download_wheel, list_versions, published
from patchkit.upstream.release import WHEEL, Release, archive_of
from patchkit.upstream.wheels import DAMAGED, PACKAGE, Wheel, packed, read_wheel, wheel_digest

CHECKED = "SHA-256 checked against"
"""How the note on a hash begins that was found to be the published one."""

_ABOUT = "patchkit.json"


def fetch(version: str, wheels: Path | None = None, package: str = PACKAGE) -> Release:
    """One release, from the cache or from where pip is configured to look.

    Raises:
        ReleaseError: see :func:`~patchkit.upstream.releases.resolve`; likewise WheelError and CacheError.
    """
    place = cache_directory() / SOURCES / f"{package}-{Version(version)}.zip"
    if (kept := _from_cache(place, package)) is not None:
        touch(place)
        return kept if kept.hash_note.startswith(CHECKED) else _checked_later(kept)
    prepare_cache()
    with _fetching_folder(place.parent) as folder:
        try:
            path = download_wheel(version, folder, wheels, package)
        except ReleaseError as error:
            raise _with_near_misses(version, error, wheels, package) from error
        wheel = read_wheel(path, package)
        note = _hash_note(path.name, wheel.sha256, package)
    if Version(wheel.version) != Version(version):
        raise WheelError(f"{path.name} says that it is {package} {wheel.version}, not {version}")
    return _keep(place, wheel, note, WHEEL, path.name, package)


def of_wheel(path: Path, package: str = PACKAGE) -> Release:
    """The release in a wheel file.

    Raises:
        WheelError: the wheel is damaged or unsafe; likewise CacheError.
    """
    digest = wheel_digest(path)
    place = cache_directory() / SOURCES / f"{package}-file-{digest[:32]}.zip"
    if (kept := _from_cache(place, package)) is not None:
        touch(place)
        return replace(kept, origin=str(path))  # the same wheel may lie elsewhere now
    return _keep(place, read_wheel(path, package), "", str(path), path.name, package)


@contextmanager
def _fetching_folder(beside: Path) -> Iterator[Path]:
    """A folder in the cache, where what a killed process leaves is found and deleted."""
    try:
        beside.mkdir(mode=0o700, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=FETCHING, dir=beside))
    except OSError as error:
        raise CacheError(f"{beside} cannot be written to: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hash_note(filename: str, sha256: str, package: str) -> str:
    """What the hash of a wheel was checked against, or why it was not.

    Raises:
        WheelError: the index publishes another hash.
    """
    told = published(filename, package)
    if told.hashes and sha256 not in told.hashes:
        expected = " or ".join(sorted(told.hashes))
        raise WheelError(f"{filename} has the SHA-256 {sha256}, but {told.where} says {expected}")
    return f"{CHECKED} {told.where}" if told.hashes else f"SHA-256 {sha256} not checked: {told.where}"


def _checked_later(release: Release) -> Release:
    """A release of the cache whose hash could not be checked when it was fetched: the index may publish it by now.

    Raises:
        WheelError: it publishes another one. The release is fetched anew next time.
    """
    place = release.location
    archive = archive_of(place)
    about = json.loads(archive.read(_ABOUT))
    filename = about.get("filename") or f"{release.package}-{release.version}-py3-none-any.whl"
    try:
        note = _hash_note(filename, about["sha256"], release.package)
    except WheelError:
        _forget(place)
        raise
    if not note.startswith(CHECKED):
        return replace(release, hash_note=note)
    files = {name: archive.read(name) for name in archive.namelist() if name != _ABOUT}
    wheel = Wheel(release.version, release.requires_python, about["sha256"], files)
    try:
        return _keep(place, wheel, note, release.origin, filename, release.package)
    except CacheError:  # one that may only be read: it is asked for again next time
        return replace(release, hash_note=note)


def _with_near_misses(version: str, error: ReleaseError, wheels: Path | None, package: str) -> ReleaseError:
    """The error, with the releases that are nearest if the index can be listed and lacks this one."""
    try:
        known = list_versions(wheels, package)
    except ReleaseError:
        return error
    wanted = Version(version)
    if wanted in known:
        return error
    place = bisect(known, wanted)
    near = ", ".join(map(str, known[max(place - 2, 0) : place + 2]))
    return ReleaseError(f"there is no {package} {version}; near it: {near}")


def _from_cache(place: Path, package: str) -> Release | None:
    """What the cache keeps of a release; None if nothing, or if it is damaged: then it is fetched anew.

    Raises:
        CacheError: it must not be believed.
    """
    try:
        about = json.loads(archive_of(place).read(_ABOUT))
        texts = [about[name] for name in ("version", "origin", "hash_note", "requires_python", "sha256")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{_ABOUT} is not what this version writes")
        version, origin, note, requires_python, _ = texts
        return Release(version, place, origin, note, requires_python, package)
    except CacheError:
        raise
    except FileNotFoundError:
        return None
    except (WheelError, RecursionError, TypeError, *DAMAGED):
        _forget(place)
        return None


def _forget(place: Path) -> None:
    archive_of.cache_clear()
    with contextlib.suppress(OSError):  # a cache that may only be read, or is none: what is fetched says so
        if not why_not_patchkits(cache_directory()):
            place.unlink()


def _keep(place: Path, wheel: Wheel, note: str, origin: str, filename: str, package: str) -> Release:
    release = Release(wheel.version, place, origin, note, wheel.requires_python, package)
    about = {
        "version": wheel.version,
        "origin": origin,
        "filename": filename,
        "hash_note": note,
        "requires_python": wheel.requires_python,
        "sha256": wheel.sha256,
    }
    write_whole(place, packed(wheel.files, json.dumps(about, indent=1).encode(), _ABOUT))
    archive_of.cache_clear()
    trim(SOURCES)
    return release
