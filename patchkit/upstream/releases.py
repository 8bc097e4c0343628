"""Which releases of transformers or PEFT are meant: the installed one, those of an index, wheels and checkouts."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from patchkit.errors import ReleaseError, WheelError
from patchkit.processes.children import all_stopped
from patchkit.upstream.index import list_versions
from patchkit.upstream.kept_releases import CHECKED, fetch, of_wheel
from patchkit.upstream.release import INSTALLED, WHEEL, Release, installed_release, version_of_checkout
from patchkit.upstream.wheels import PACKAGE

LATEST = "latest"
OLDEST = Version("4.48.0")
"""The first release that patchkit supports."""

FETCH_SECONDS = 3600.0
"""How long a command may fetch releases, however many they are."""

_FETCHES = 4


def resolve(
    specs: Iterable[str],
    *,
    wheels: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    from_wheels: bool = False,
    require_hashes: bool = False,
    package: str = PACKAGE,
) -> list[Release]:
    """The releases that the user asked for, each once, oldest first; fetched if need be, several at a time.

    Args:
        specs: each ``installed``, an exact release, a range such as ``>=5.20``, ``latest``, or a path to a wheel or a
            checkout.
        wheels: a folder of wheels to use instead of the index.
        progress: is told how many of how many releases are there.
        from_wheels: take the wheel of a release that is installed too: an installed file can have been edited.
        require_hashes: take no wheel whose hash no index publishes. What is installed, or a checkout, is no wheel.
        package: what they are releases of.

    Raises:
        ReleaseError: a release is unknown, or cannot be fetched; nearby ones are named. Or all of it takes longer than
            :data:`FETCH_SECONDS`.
        WheelError: a wheel is damaged, unsafe, not the one that the index describes, or not described by any.
        CacheError: the cache cannot be written.
    """
    end = time.monotonic() + FETCH_SECONDS
    wanted = [item for spec in specs for item in _expand(spec, wheels, package)]
    if not from_wheels:
        wanted = [_unless_installed(item, package) for item in wanted]
    found = {item.version: item for item in wanted if isinstance(item, Release)}
    versions = sorted({item for item in wanted if isinstance(item, Version)} - set(map(Version, found)))
    progress(0, len(versions))
    # Threads: the work is pip's, in processes of its own, and decompression, which frees the interpreter.
    with ThreadPoolExecutor(_FETCHES) as pool:
        try:
            fetches = pool.map(
                lambda version: fetch(str(version), wheels, package), versions, timeout=end - time.monotonic()
            )
            for release in fetches:
                found[release.version] = release
                progress(len(found), len(versions))
        except BaseException as error:
            with all_stopped():
                pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, FutureTimeoutError):
                missing = ", ".join(str(version) for version in versions if str(version) not in found)
                raise ReleaseError(f"not fetched within {FETCH_SECONDS:.0f} s: {package} {missing}") from None
            raise
    releases = sorted(found.values(), key=lambda release: Version(release.version))
    if require_hashes:
        for release in releases:
            _require_hash(release)
    return releases


def _require_hash(release: Release) -> None:
    """Refuse a release from a wheel whose hash was not checked.

    Raises:
        WheelError: saying why it was not.
    """
    if release.location.is_dir() or release.hash_note.startswith(CHECKED):
        return
    why = release.hash_note or f"{release.origin} was given as a file; name its release to have it checked"
    raise WheelError(f"{release.package} {release.version}: the hash of its wheel is required, but {why}")


def _unless_installed(item: Version | Release, package: str) -> Version | Release:
    """The installed release for its version: nothing has to be fetched, and it is what will run."""
    if isinstance(item, Release) or importlib.util.find_spec(package) is None:
        return item
    installed = installed_release(package)
    return installed if Version(installed.version) == item else item


def _expand(spec: str, wheels: Path | None, package: str) -> list[Version | Release]:
    if spec == INSTALLED:
        return [installed_release(package)]
    if spec == LATEST:
        return [list_versions(wheels, package)[-1]]
    if spec.endswith(".whl") or "/" in spec or "\\" in spec or spec in {".", ".."}:
        return [release_at(Path(spec), package)]  # with a separator: a folder may be called 5.22.2, and would be built
    try:
        return [Version(spec)]
    except InvalidVersion:
        pass
    try:
        wanted = SpecifierSet(spec)
    except InvalidSpecifier as error:
        raise ReleaseError(
            f"{spec!r} is not a release, a range such as '>=5.20', '{LATEST}', '{INSTALLED}', or a path "
            f"(with a separator: .{os.sep}{spec})"
        ) from error
    known = list_versions(wheels, package)
    chosen: list[Version | Release] = [version for version in known if version in wanted]
    if not chosen:
        raise ReleaseError(f"no release of {package} is {spec}; the newest is {known[-1]}")
    return chosen


def release_at(path: Path, package: str = PACKAGE) -> Release:
    """The release in a wheel file, a checkout, or a folder that holds the package.

    Raises:
        ReleaseError: there is nothing of the kind.
        WheelError: the wheel is damaged or unsafe.
    """
    if path.is_file() and path.suffix == ".whl":
        return of_wheel(path, package)
    inside = "models" if package == PACKAGE else "tuners"
    for folder in (path / "src", path, path.parent):
        if (folder / package / inside).is_dir() and (folder != path.parent or path.name == package):
            origin = os.path.join(".", path) if str(path) in {INSTALLED, WHEEL} else str(path)
            return Release(version_of_checkout(folder / package), folder.resolve(), origin, package=package)
    what = f"has no {package}/{inside}" if path.is_dir() else "is no wheel" if path.exists() else "does not exist"
    raise ReleaseError(f"{path} {what}; expected a wheel, or a checkout with src/{package}")
