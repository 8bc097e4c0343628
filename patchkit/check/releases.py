"""Releases of transformers as text: the installed one, those of an index, and wheels or checkouts on disk.

Nothing of a release is imported or run. A release that was fetched once is kept in the cache as one small archive of
its model files, written beside its place and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from patchkit.check import cache
from patchkit.check.index import download_wheel, list_versions, published
from patchkit.check.storage import cache_directory, write_whole
from patchkit.check.wheels import PACKAGE, Wheel, is_model_file, packed, read_wheel
from patchkit.errors import ReleaseError, WheelError

INSTALLED = "installed"
LATEST = "latest"
WHEEL = "wheel"
OLDEST = Version("4.48.0")
"""The first release that patchkit supports."""

_ABOUT = "patchkit.json"
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
            ReleaseError: the file cannot be read, or is not UTF-8.
        """
        try:
            if self.location.is_dir():
                file = self.location / path
                return file.read_text("utf-8") if file.is_file() else None
            archive = _archive(self.location)
            return archive.read(path).decode("utf-8") if path in archive.NameToInfo else None
        except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
            raise ReleaseError(f"{PACKAGE} {self.version}: {path} cannot be read: {error}") from error

    def model_files(self) -> list[str]:
        """Paths of its model files, sorted."""
        if self.location.is_dir():
            files = (self.location / PACKAGE / "models").rglob("modeling_*.py")
            names: Iterable[str] = (file.relative_to(self.location).as_posix() for file in files)
        else:
            names = _archive(self.location).namelist()
        return sorted(name for name in names if is_model_file(name))


@lru_cache(maxsize=4)
def _archive(location: Path) -> zipfile.ZipFile:
    """An archive of the cache, kept open: a sweep reads many files of one release."""
    return zipfile.ZipFile(location)


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
) -> list[Release]:
    """The releases that the user asked for, each once, oldest first; fetched if need be, several at a time.

    Args:
        specs: each ``installed``, an exact release, a range such as ``>=5.20``, ``latest``, or a path to a wheel or a
            checkout.
        wheels: a folder of wheels to use instead of the index.
        progress: is told how many of how many releases are there.
        from_wheels: take the wheel of a release that is installed too: an installed file can have been edited.

    Raises:
        ReleaseError: a release is unknown, or cannot be fetched; nearby ones are named.
        WheelError: a wheel is damaged, unsafe, or not the one that the index describes.
        CacheError: the cache cannot be written.
    """
    wanted = [item for spec in specs for item in _expand(spec, wheels)]
    if not from_wheels:
        wanted = [_unless_installed(item) for item in wanted]
    found = {item.version: item for item in wanted if isinstance(item, Release)}
    versions = sorted({item for item in wanted if isinstance(item, Version)} - set(map(Version, found)))
    progress(0, len(versions))
    # Threads: the work is pip's, in processes of its own, and decompression, which frees the interpreter.
    with ThreadPoolExecutor(_FETCHES) as pool:
        try:
            for release in pool.map(lambda version: fetch(str(version), wheels), versions):
                found[release.version] = release
                progress(len(found), len(versions))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(found.values(), key=lambda release: Version(release.version))


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
        return kept
    with tempfile.TemporaryDirectory(prefix="patchkit-") as folder:
        try:
            path = download_wheel(version, Path(folder), wheels)
        except ReleaseError as error:
            raise _with_near_misses(version, error, wheels) from error
        wheel, note = _verified(path)
    if Version(wheel.version) != Version(version):
        raise WheelError(f"{path.name} says that it is {PACKAGE} {wheel.version}, not {version}")
    return _keep(place, wheel, note, WHEEL)


def _verified(path: Path) -> tuple[Wheel, str]:
    """A wheel that has the hash that the index publishes, and what that was checked against."""
    told = published(path.name)
    wheel = read_wheel(path)
    if told.hashes and wheel.sha256 not in told.hashes:
        expected = " or ".join(sorted(told.hashes))
        raise WheelError(f"{path.name} has the SHA-256 {wheel.sha256}, but {told.where} says {expected}")
    if told.hashes:
        return wheel, f"SHA-256 checked against {told.where}"
    return wheel, f"SHA-256 {wheel.sha256} not checked: {told.where}"


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
    """What the cache keeps of a release; None if nothing, or if it was damaged, which deletes it."""
    try:
        about = json.loads(_archive(place).read(_ABOUT))
        return Release(about["version"], place, about["origin"], about["hash_note"], about["requires_python"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        _archive.cache_clear()
        place.unlink(missing_ok=True)
        return None


def _keep(place: Path, wheel: Wheel, note: str, origin: str) -> Release:
    release = Release(wheel.version, place, origin, note, wheel.requires_python)
    about = {
        "version": wheel.version,
        "origin": origin,
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
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        place = cache_directory() / cache.SOURCES / f"{PACKAGE}-file-{digest[:32]}.zip"
        if (kept := _from_cache(place)) is not None:
            cache.touch(place)
            return kept
        return _keep(place, read_wheel(path), "", str(path))
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
    except (OSError, SyntaxError, ValueError) as error:
        raise ReleaseError(f"{package / '__init__.py'} cannot be read: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "__version__" in names:
                return str(Version(str(node.value.value)))
    raise ReleaseError(f"{package / '__init__.py'} has no __version__")
