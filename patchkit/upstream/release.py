"""One release of transformers, or of a plugin's package, as text: nothing of it is imported or run."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from packaging.version import InvalidVersion, Version

from patchkit.cache.storage import read_ours
from patchkit.errors import ReleaseError, RewriteError, WheelError
from patchkit.upstream.text import parsed
from patchkit.upstream.wheels import DAMAGED, PACKAGE, is_model_file, opened

INSTALLED = "installed"
WHEEL = "wheel"


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
            archive = archive_of(self.location)
            return archive.read(path).decode("utf-8") if path in archive.NameToInfo else None
        except UnicodeDecodeError as error:
            raise RewriteError(f"{path}:1: the source is not UTF-8: {error.reason} at byte {error.start}") from error
        except (OSError, WheelError, *DAMAGED) as error:
            raise ReleaseError(f"{self.package} {self.version}: {path} cannot be read: {error}") from error

    def model_files(self) -> list[str]:
        """Paths of its model files, sorted; of a plugin's package those of all its files.

        Raises:
            ReleaseError: it cannot be read.
        """
        if self.package != PACKAGE:
            found = (file.relative_to(self.location) for file in (self.location / self.package).rglob("*.py"))
            return sorted(file.as_posix() for file in found)
        if self.location.is_dir():
            files = (self.location / PACKAGE / "models").rglob("modeling_*.py")
            names: Iterable[str] = (file.relative_to(self.location).as_posix() for file in files)
        else:
            try:
                names = archive_of(self.location).namelist()
            except (WheelError, *DAMAGED) as error:
                raise ReleaseError(f"{PACKAGE} {self.version} cannot be read: {error}") from error
        return sorted(name for name in names if is_model_file(name))


@lru_cache(maxsize=4)
def archive_of(location: Path) -> zipfile.ZipFile:
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
    if spec is None or not (spec.submodule_search_locations or spec.has_location):
        hint = "; --transformers RELEASE checks one that is not" if package == PACKAGE else ""
        raise ReleaseError(f"{package} is not installed{hint}")
    # What has no folder is one file.
    folder = Path(spec.submodule_search_locations[0] if spec.submodule_search_locations else spec.origin or "")
    known = _distribution_of(package)
    if known is not None and Path(str(known.locate_file(package))).resolve() == folder.resolve():
        version = str(Version(known.version))
    else:  # another is installed than would be imported (PYTHONPATH), or none is; or its files are elsewhere (editable)
        try:
            version = version_of_checkout(folder)
        except ReleaseError:
            if known is None:
                raise
            version = str(Version(known.version))
    return Release(version, folder.parent, INSTALLED, package=package)


def _distribution_of(package: str) -> importlib.metadata.Distribution | None:
    """What was installed with a package in it, under whatever name; None if it only lies on the path."""
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, [])
        return importlib.metadata.distribution(names[0]) if len(set(names)) == 1 else None


def version_of_checkout(package: Path) -> str:
    """``__version__`` in the text of a package's ``__init__.py``.

    Args:
        package: its folder, or its file where it is a single one.

    Raises:
        ReleaseError: it cannot be read, or there is none.
    """
    file = package if package.is_file() else package / "__init__.py"
    try:
        tree = parsed(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, RewriteError) as error:
        raise ReleaseError(f"{file} cannot be read: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "__version__" in names:
                try:
                    return str(Version(str(node.value.value)))
                except InvalidVersion as error:
                    raise ReleaseError(f"{file}: {error}") from error
    raise ReleaseError(f"{file} has no __version__")
