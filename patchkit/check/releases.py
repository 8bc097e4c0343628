"""Releases of transformers as text: the installed one, those of an index, and wheels or checkouts on disk.

Nothing of a release is imported or run. A release that was fetched once is kept in the cache as one small archive of
its model files, written beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from patchkit.check import cache
from patchkit.check.children import all_stopped
from patchkit.check.index import download_wheel, list_versions, published
from patchkit.check.storage import FETCHING, cache_directory, prepare_cache, read_ours, why_not_patchkits, write_whole
from patchkit.check.wheels import DAMAGED, PACKAGE, Wheel, is_model_file, opened, packed, read_wheel, wheel_digest
from patchkit.errors import CacheError, ReleaseError, RewriteError, WheelError

INSTALLED = "installed"
LATEST = "latest"
WHEEL = "wheel"
OLDEST = Version("4.48.0")
"""The first release that patchkit supports."""

FETCH_SECONDS = 3600.0
"""How long a command may fetch releases, however many they are."""

_ABOUT = "patchkit.json"
_CHECKED = "SHA-256 checked against"
_FETCHES = 4


@dataclass(frozen=True)
class Release:
    """One release, whose model files can be read.

    Attributes:
        version: as the release itself says.
        location: a folder that holds the folder ``transformers``, or an archive of its model files.
        origin: for people: ``installed``, ``wheel``, or the path that was given.
        hash_note: what the wheel's hash was checked against, or why it was not; empty where there is no wheel.
        requires_python: its range of Python versions; empty if unknown.
        package: what it is a release of: ``transformers``, or the package of a plugin.
    """

    version: str
    location: Path
    origin: str
    hash_note: str = ""
    requires_python: str = ""
    package: str = PACKAGE

    @property
    def is_installed(self) -> bool:
        """Whether this is the transformers that this Python would import."""
        return self.origin == INSTALLED

    def read(self, path: str) -> str | None:
        """Text of a file such as ``transformers/models/llama/modeling_llama.py``, or None if there is none.

        Raises:
            ReleaseError: the file cannot be read.
            RewriteError: the file is not UTF-8.
        """
        try:
            if self.location.is_dir():
                file = self.location / path
                return file.read_text("utf-8") if file.is_file() else None
            archive = _archive(self.location)
            return archive.read(path).decode("utf-8") if path in archive.NameToInfo else None
        except UnicodeDecodeError as error:
            raise RewriteError(f"{path}:1: the source is not UTF-8: {error.reason} at byte {error.start}") from error
        except (OSError, WheelError, *DAMAGED) as error:
            raise ReleaseError(f"{PACKAGE} {self.version}: {path} cannot be read: {error}") from error

    def model_files(self) -> list[str]:
        """Paths of its model files, sorted.

        Raises:
            ReleaseError: it cannot be read.
        """
        if self.location.is_dir():
            files = (self.location / PACKAGE / "models").rglob("modeling_*.py")
            names: Iterable[str] = (file.relative_to(self.location).as_posix() for file in files)
        else:
            try:
                names = _archive(self.location).namelist()
            except (WheelError, *DAMAGED) as error:
                raise ReleaseError(f"{PACKAGE} {self.version} cannot be read: {error}") from error
        return sorted(name for name in names if is_model_file(name))


@lru_cache(maxsize=4)
def _archive(location: Path) -> zipfile.ZipFile:
    """An archive of the cache, kept in memory: a sweep reads many files of one release.

    Raises:
        FileNotFoundError: there is none.
        CacheError: it cannot be read, or must not be believed.
        WheelError: it has changed since it was written.
    """
    return opened(read_ours(location))


def module_path(module: str) -> str:
    """The file of a module: ``a.b`` is in ``a/b.py``."""
    return module.replace(".", "/") + ".py"


def installed_release(package: str = PACKAGE) -> Release:
    """The transformers (or the package of a plugin) that this Python would import; it is located, not imported.

    Raises:
        ReleaseError: there is none.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        hint = "; --transformers RELEASE checks one that is not" if package == PACKAGE else ""
        raise ReleaseError(f"{package} is not installed{hint}")
    folder = Path(spec.submodule_search_locations[0])
    try:
        known = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        known = None
    if known is not None and Path(str(known.locate_file(package))).resolve() == folder.resolve():
        version = str(Version(known.version))
    else:  # another is installed than would be imported (PYTHONPATH), or none is; or its files are elsewhere (editable)
        try:
            version = _version_of_checkout(folder)
        except ReleaseError:
            if known is None:
                raise
            version = str(Version(known.version))
    return Release(version, folder.parent, INSTALLED, package=package)


def resolve(
    specs: Iterable[str],
    *,
    wheels: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    from_wheels: bool = False,
    require_hashes: bool = False,
) -> list[Release]:
    """The releases that the user asked for, each once, oldest first; fetched if need be, several at a time.

    Args:
        specs: each ``installed``, an exact release, a range such as ``>=5.20``, ``latest``, or a path to a wheel or a
            checkout.
        wheels: a folder of wheels to use instead of the index.
        progress: is told how many of how many releases are there.
        from_wheels: take the wheel of a release that is installed too: an installed file can have been edited.
        require_hashes: take no wheel whose hash no index publishes. What is installed, or a checkout, is no wheel.

    Raises:
        ReleaseError: a release is unknown, or cannot be fetched; nearby ones are named. Or all of it takes longer than
            :data:`FETCH_SECONDS`.
        WheelError: a wheel is damaged, unsafe, not the one that the index describes, or not described by any.
        CacheError: the cache cannot be written.
    """
    end = time.monotonic() + FETCH_SECONDS
    wanted = [item for spec in specs for item in _expand(spec, wheels)]
    if not from_wheels:
        wanted = [_unless_installed(item) for item in wanted]
    found = {item.version: item for item in wanted if isinstance(item, Release)}
    versions = sorted({item for item in wanted if isinstance(item, Version)} - set(map(Version, found)))
    progress(0, len(versions))
    # Threads: the work is pip's, in processes of its own, and decompression, which frees the interpreter.
    with ThreadPoolExecutor(_FETCHES) as pool:
        try:
            fetches = pool.map(lambda version: fetch(str(version), wheels), versions, timeout=end - time.monotonic())
            for release in fetches:
                found[release.version] = release
                progress(len(found), len(versions))
        except BaseException as error:
            with all_stopped():
                pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, FutureTimeoutError):
                missing = ", ".join(str(version) for version in versions if str(version) not in found)
                raise ReleaseError(f"not fetched within {FETCH_SECONDS:.0f} s: {PACKAGE} {missing}") from None
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
    if release.location.is_dir() or release.hash_note.startswith(_CHECKED):
        return
    why = release.hash_note or f"{release.origin} was given as a file; name its release to have it checked"
    raise WheelError(f"{PACKAGE} {release.version}: the hash of its wheel is required, but {why}")


def _unless_installed(item: Version | Release) -> Version | Release:
    """The installed release for its version: nothing has to be fetched, and it is what will run."""
    if isinstance(item, Release) or importlib.util.find_spec(PACKAGE) is None:
        return item
    installed = installed_release()
    return installed if Version(installed.version) == item else item


def _expand(spec: str, wheels: Path | None) -> list[Version | Release]:
    if spec == INSTALLED:
        return [installed_release()]
    if spec == LATEST:
        return [list_versions(wheels)[-1]]
    if spec.endswith(".whl") or "/" in spec or "\\" in spec or spec in {".", ".."}:
        return [release_at(Path(spec))]  # with a separator: a folder may be called 5.22.2, and would be built
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
    known = list_versions(wheels)
    chosen: list[Version | Release] = [version for version in known if version in wanted]
    if not chosen:
        raise ReleaseError(f"no release of {PACKAGE} is {spec}; the newest is {known[-1]}")
    return chosen


def fetch(version: str, wheels: Path | None = None) -> Release:
    """One release, from the cache or from where pip is configured to look.

    Raises:
        ReleaseError: see :func:`resolve`; likewise WheelError and CacheError.
    """
    place = cache_directory() / cache.SOURCES / f"{PACKAGE}-{Version(version)}.zip"
    if (kept := _from_cache(place)) is not None:
        cache.touch(place)
        return kept if kept.hash_note.startswith(_CHECKED) else _checked_later(kept)
    prepare_cache()
    with _fetching_folder(place.parent) as folder:
        try:
            path = download_wheel(version, folder, wheels)
        except ReleaseError as error:
            raise _with_near_misses(version, error, wheels) from error
        wheel = read_wheel(path)
        note = _hash_note(path.name, wheel.sha256)
    if Version(wheel.version) != Version(version):
        raise WheelError(f"{path.name} says that it is {PACKAGE} {wheel.version}, not {version}")
    return _keep(place, wheel, note, WHEEL, path.name)


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


def _hash_note(filename: str, sha256: str) -> str:
    """What the hash of a wheel was checked against, or why it was not.

    Raises:
        WheelError: the index publishes another hash.
    """
    told = published(filename)
    if told.hashes and sha256 not in told.hashes:
        expected = " or ".join(sorted(told.hashes))
        raise WheelError(f"{filename} has the SHA-256 {sha256}, but {told.where} says {expected}")
    return f"{_CHECKED} {told.where}" if told.hashes else f"SHA-256 {sha256} not checked: {told.where}"


def _checked_later(release: Release) -> Release:
    """A release of the cache whose hash could not be checked when it was fetched: the index may publish it by now.

    Raises:
        WheelError: it publishes another one. The release is fetched anew next time.
    """
    place = release.location
    archive = _archive(place)
    about = json.loads(archive.read(_ABOUT))
    filename = about.get("filename") or f"{PACKAGE}-{release.version}-py3-none-any.whl"
    try:
        note = _hash_note(filename, about["sha256"])
    except WheelError:
        _forget(place)
        raise
    if not note.startswith(_CHECKED):
        return replace(release, hash_note=note)
    files = {name: archive.read(name) for name in archive.namelist() if name != _ABOUT}
    wheel = Wheel(release.version, release.requires_python, about["sha256"], files)
    try:
        return _keep(place, wheel, note, release.origin, filename)
    except CacheError:  # one that may only be read: it is asked for again next time
        return replace(release, hash_note=note)


def _with_near_misses(version: str, error: ReleaseError, wheels: Path | None) -> ReleaseError:
    """The error, with the releases that are nearest if the index can be listed and lacks this one."""
    try:
        known = list_versions(wheels)
    except ReleaseError:
        return error
    wanted = Version(version)
    if wanted in known:
        return error
    near = [*[v for v in known if v < wanted][-2:], *[v for v in known if v > wanted][:2]]
    return ReleaseError(f"there is no {PACKAGE} {version}; near it: {', '.join(map(str, near))}")


def _from_cache(place: Path) -> Release | None:
    """What the cache keeps of a release; None if nothing, or if it is damaged: then it is fetched anew.

    Raises:
        CacheError: it must not be believed.
    """
    try:
        about = json.loads(_archive(place).read(_ABOUT))
        texts = [about[name] for name in ("version", "origin", "hash_note", "requires_python", "sha256")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{_ABOUT} is not what this version writes")
        version, origin, note, requires_python, _ = texts
        return Release(version, place, origin, note, requires_python)
    except CacheError:
        raise
    except FileNotFoundError:
        return None
    except (WheelError, RecursionError, TypeError, *DAMAGED):
        _forget(place)
        return None


def _forget(place: Path) -> None:
    _archive.cache_clear()
    with contextlib.suppress(OSError):  # a cache that may only be read, or is none: what is fetched says so
        if not why_not_patchkits(cache_directory()):
            place.unlink()


def _keep(place: Path, wheel: Wheel, note: str, origin: str, filename: str) -> Release:
    release = Release(wheel.version, place, origin, note, wheel.requires_python)
    about = {
        "version": wheel.version,
        "origin": origin,
        "filename": filename,
        "hash_note": note,
        "requires_python": wheel.requires_python,
        "sha256": wheel.sha256,
    }
    write_whole(place, packed(wheel.files, json.dumps(about, indent=1).encode(), _ABOUT))
    _archive.cache_clear()
    cache.trim(cache.SOURCES)
    return release


def release_at(path: Path) -> Release:
    """The release in a wheel file, a checkout, or a folder that holds ``transformers``.

    Raises:
        ReleaseError: there is nothing of the kind.
        WheelError: the wheel is damaged or unsafe.
    """
    if path.is_file() and path.suffix == ".whl":
        digest = wheel_digest(path)
        place = cache_directory() / cache.SOURCES / f"{PACKAGE}-file-{digest[:32]}.zip"
        if (kept := _from_cache(place)) is not None:
            cache.touch(place)
            return replace(kept, origin=str(path))  # the same wheel may lie elsewhere now
        return _keep(place, read_wheel(path), "", str(path), path.name)
    for folder in (path / "src", path, path.parent):
        if (folder / PACKAGE / "models").is_dir() and (folder != path.parent or path.name == PACKAGE):
            origin = os.path.join(".", path) if str(path) in {INSTALLED, WHEEL} else str(path)
            return Release(_version_of_checkout(folder / PACKAGE), folder.resolve(), origin)
    what = "has no transformers/models" if path.is_dir() else "is no wheel" if path.exists() else "does not exist"
    raise ReleaseError(f"{path} {what}; expected a wheel, or a checkout with src/{PACKAGE}")


def _version_of_checkout(package: Path) -> str:
    """``__version__`` in the text of a package's ``__init__.py``."""
    try:
        tree = ast.parse((package / "__init__.py").read_text("utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ReleaseError(f"{package / '__init__.py'} cannot be read: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "__version__" in names:
                try:
                    return str(Version(str(node.value.value)))
                except InvalidVersion as error:
                    raise ReleaseError(f"{package / '__init__.py'}: {error}") from error
    raise ReleaseError(f"{package / '__init__.py'} has no __version__")
