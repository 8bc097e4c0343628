"""The package index that pip is configured for: which releases it has, a wheel from it, and the hash it publishes.

pip itself lists and downloads, so that its mirrors, credentials, proxies and certificates hold here too. The page of
the index (PEP 503 or 691) is read once more for the hash, which pip checks but does not tell.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from patchkit.errors import ReleaseError
from patchkit.processes.children import ChildError, run_child
from patchkit.upstream.addresses import without_credentials
from patchkit.upstream.index_page import PageError, hashes_on
from patchkit.upstream.wheels import MAX_WHEEL, PACKAGE

_LIST_SECONDS = 120.0
_DOWNLOAD_SECONDS = 600.0
"""How long pip may take to list the releases, or to fetch a wheel of 13 MB, whatever the index does."""

_MEMORY = 4 * 2**30
_TRUE = {"y", "yes", "t", "true", "on", "1"}  # as in pip


@dataclass(frozen=True)
class Published:
    """What the pages of the index say of one file.

    Attributes:
        hashes: its SHA-256 digests; several if several indexes offer files of this name.
        where: the pages that give them; or, without a hash, why there is none.
    """

    hashes: frozenset[str]
    where: str


def list_versions(wheels: Path | None = None, package: str = PACKAGE) -> list[Version]:
    """Every release of transformers, or of another package, that pip can find, without pre-releases, oldest first.

    Args:
        wheels: a folder with wheels to look in, instead of the index.
        package: what the releases are of.

    Raises:
        ReleaseError: pip finds none, or does not work; with pip's own reason.
    """
    if wheels is not None:
        versions = {version for version, _ in _wheels_in(wheels, package) if not version.is_prerelease}
        if not versions:
            raise ReleaseError(f"{wheels} has pre-releases of {package} only; name one")
        return sorted(versions)
    output = _pip("index", "versions", package, "--ignore-requires-python", seconds=_LIST_SECONDS)
    listed = re.search(r"^Available versions: (.*)$", output, re.MULTILINE)
    try:
        if listed is not None:
            return sorted(map(Version, listed[1].split(", ")))
    except InvalidVersion:
        pass
    raise ReleaseError(f"pip lists no releases of {package}; it said: {without_credentials(output.strip()[:200])!r}")


def download_wheel(version: str, folder: Path, wheels: Path | None = None, package: str = PACKAGE) -> Path:
    """Fetch the wheel of one release into ``folder``. A release that wants another Python is fetched all the same.

    Args:
        version: the exact release.
        folder: where to put it.
        wheels: a folder with wheels to take it from, instead of the index.
        package: what it is a release of.

    Raises:
        ReleaseError: there is none, or pip cannot fetch it; with pip's own reason.
    """
    if wheels is not None:
        for found, path in _wheels_in(wheels, package):
            if found == Version(version):
                return path
        raise ReleaseError(f"{wheels} has no wheel of {package} {version}")
    arguments = ("--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--progress-bar", "off")
    place = ("--dest", str(folder))
    _pip("download", *arguments, *place, f"{package}=={version}", seconds=_DOWNLOAD_SECONDS, folder=folder)
    files = list(folder.glob("*.whl"))
    if len(files) != 1:
        raise ReleaseError(f"pip fetched {len(files)} wheels for {package} {version}, expected one")
    return files[0]


def published(filename: str, package: str = PACKAGE) -> Published:
    """The hashes that the configured indexes publish for a file. Never raises: without any, ``where`` says why."""
    hashes: dict[str, str] = {}
    problems = []
    try:
        pages = _pages(package)
    except ReleaseError as error:
        return Published(frozenset(), str(error))
    for page in pages:
        found = _links(page)
        if isinstance(found, str):
            problems.append(f"{without_credentials(page)} cannot be read ({found})")
        elif filename in found:
            hashes[found[filename]] = without_credentials(page)
    if hashes:
        return Published(frozenset(hashes), ", ".join(sorted(set(hashes.values()))))
    return Published(frozenset(), "; ".join(problems) or "no index that pip is configured for publishes one")


def _wheels_in(folder: Path, package: str) -> list[tuple[Version, Path]]:
    if not folder.is_dir():
        raise ReleaseError(f"{folder} is not a folder")
    found = []
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        if name == package:
            found.append((version, path))
    if not found:
        raise ReleaseError(f"{folder} has no wheel of {package}")
    return found


# ---- pip


# pip keeps all of a page in memory, however long that is.
_RUN_PIP = """
import runpy, sys
memory = int(sys.argv.pop(1))
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
except (ImportError, OSError, ValueError):
    pass
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def _pip(*arguments: str, seconds: float, folder: Path | None = None) -> str:
    """Run pip and return what it prints.

    Args:
        arguments: the command and its arguments.
        seconds: how long it may take.
        folder: where it fetches to, and keeps what is not whole yet; up to the size of a wheel.
    """
    # Isolated: nothing of the working folder or of PYTHONPATH is run.
    command = [sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c", _RUN_PIP, str(_MEMORY), *arguments]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "2"]
    environment = {**os.environ, "PIP_NO_COLOR": "1"}
    if folder is not None:
        environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    try:
        done = run_child(command, seconds=seconds, environment=environment, folder=folder, limit=2 * MAX_WHEEL)
    except ChildError as error:
        raise ReleaseError(f"pip {arguments[0]} was stopped: {error}") from error
    except OSError as error:
        raise ReleaseError(f"{sys.executable} cannot be run: {error.strerror or error}") from error
    if done.code:
        raise ReleaseError(f"pip {arguments[0]} failed: {without_credentials(_reason(done.said))}")
    return done.output


def _reason(text: str) -> str:
    """pip's reason in one line: that of the connection, if there is one, else its last error."""
    if "No module named pip" in text:
        return f"pip is not installed for {sys.executable}; `python -m ensurepip` installs it"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    broken = [line for line in lines if re.search(r"connection broken|Could not fetch URL|Max retries", line)]
    errors = [line.partition("ERROR: ")[2] for line in lines if "ERROR: " in line]
    # "ERROR: Exception:" stands before a traceback, which ends with what it was.
    reason = errors[-1] if errors and errors[-1] != "Exception:" else (lines[-1] if lines else "it said nothing")
    if broken:
        cause = re.search(r">: ([^'\"]+)", broken[0])
        reason += f"; the index cannot be reached: {cause[1] if cause else broken[0]}"
    return reason if len(reason) <= 400 else f"{reason[:397]}..."


def pip_settings(command: str) -> dict[str, str]:
    """pip's configuration by name, with pip's precedence: its files, then for one command of it, then the environment.

    An empty value is none, so that ``PIP_INDEX_URL=""`` leaves what a file says.

    Raises:
        ReleaseError: pip does not work; with its own reason.
    """
    ranks = {"global": 0, command: 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in _pip("config", "list", seconds=_LIST_SECONDS).splitlines():
        key, equals, text = line.partition("=")
        section, _, name = key.partition(".")
        rank = ranks.get(section)
        try:
            value = str(ast.literal_eval(text)) if equals else ""
        except (ValueError, SyntaxError):
            continue
        if value and rank is not None and rank >= found.get(name, (0, ""))[0]:
            found[name] = (rank, value)
    return {name: value for name, (_, value) in found.items()}


@lru_cache(maxsize=1)
def _settings() -> dict[str, str]:
    return pip_settings("download")


def _pages(package: str) -> list[str]:
    settings = _settings()
    if settings.get("no-index", "").lower() in _TRUE:
        return []
    indexes = [settings.get("index-url", "https://pypi.org/simple"), *settings.get("extra-index-url", "").split()]
    return [f"{index.rstrip('/')}/{package}/" for index in dict.fromkeys(indexes)]


@lru_cache(maxsize=16)
def _links(page: str) -> dict[str, str] | str:
    """SHA-256 by file name on a page, or why it cannot be read. Each page is asked for once a run."""
    try:
        return hashes_on(page, _settings())
    except PageError as error:
        return str(error)
