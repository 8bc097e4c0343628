"""Environments with a transformers release that is not installed, made once and kept in the cache directory.

An environment is a virtual environment that holds this release and whatever it needs in other versions than those
installed (tokenizers, huggingface-hub, ...). Everything else, torch above all, is taken from the running environment,
which lies below it on ``sys.path``. pip decides what fits, with torch and its like pinned so that they are never
installed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

import patchkit
from patchkit.check.numeric import ArchitectureOutcome
from patchkit.check.storage import cache_directory, locked, read_ours
from patchkit.errors import CacheError, ReleaseEnvironmentError

LIMIT = 30
"""How many environments are kept; that used longest ago goes first. One is 100 to 250 MB."""

_PINNED = ("torch", "triton", "numpy", "libcst")
_ROOTS = ("transformers", "peft", "torch", "triton", "libcst", "rich", "typer", "filelock", "packaging", "platformdirs")
# The installed PEFT works with every release since 4.48 that was tried; the older one is for those where it does not.
_PEFT_CHOICES = ((), ("peft==0.18.1",))
_ABOUT = "patchkit-environment.json"
_LAYOUT = 1  # of what is made here; another number makes every environment anew
_BUILD_SECONDS = 1800.0
_IN_USE_SECONDS = 3600.0


@dataclass(frozen=True)
class Environment:
    """A Python with some transformers release.

    Attributes:
        python: its interpreter.
        versions: of transformers, torch, peft and Python.
        path: its folder, or None for the running environment.
    """

    python: Path
    versions: Mapping[str, str]
    path: Path | None = None

    def check(self, architectures: Sequence[str], *, jobs: int = 1) -> Iterator[ArchitectureOutcome]:
        """The numeric stage in this environment, in a process of its own; each outcome as soon as it is there.

        Args:
            architectures: names of registered architectures.
            jobs: processes.

        Raises:
            ReleaseEnvironmentError: the process fails as such. A failed check is an outcome and no error.
        """
        command = ["-W", "ignore", "-m", "patchkit.check.numeric", "--json", "--jobs", str(jobs)]
        for name in architectures:
            command += ["--arch", name]
        # A file, because a pipe that nobody reads stops the process when it is full.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            process = subprocess.Popen(
                [self.python, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                encoding="utf-8",
                env=_variables(),
            )
            with process:  # which waits for it
                try:
                    assert process.stdout is not None
                    # Upstream's loggers may write to stdout too.
                    yield from (ArchitectureOutcome.from_json(line) for line in process.stdout if line[0] == "{")
                except BaseException:
                    process.terminate()
                    raise
            said.seek(0)
            last = _last_line(said.read())
        if process.returncode not in (0, 1):
            raise ReleaseEnvironmentError(
                f"the numeric check under transformers {self.versions['transformers']} stopped with exit code "
                f"{process.returncode}: {last}"
            )


def running_environment() -> Environment:
    """The environment that this process runs in."""
    found = {name: version(name).split("+")[0] for name in ("transformers", "torch", "peft")}
    return Environment(Path(sys.executable), {**found, "python": platform.python_version()})


def environment_for(release: str | Path) -> Environment:
    """An environment with a release of transformers: the running one if it has it, one from the cache, or a new one.

    Safe under two processes: one builds, the other waits. It is built aside and then renamed, so an interrupted build
    leaves nothing that could be taken for an environment.

    Args:
        release: a version (``"4.57.6"``), or the path of a wheel or of a checkout.

    Raises:
        ReleaseEnvironmentError: pip cannot install it (no such release, no index, too new for this Python, disk full),
            or it does not run.
        CacheError: the cache directory cannot be written to.
    """
    requirement, label, digest = _requirement(release)
    if digest is None and label == version("transformers"):
        return running_environment()
    place = environments_directory() / _name(label, digest)
    if found := _read(place):
        return found
    with locked(place, seconds=_BUILD_SECONDS):
        if found := _read(place):
            return found
        _build(place, requirement, label)
        _trim(keep=place)
    found = _read(place)
    if found is None:
        raise ReleaseEnvironmentError(f"{place} was deleted while it was being made; try again")
    return found


def environments_directory() -> Path:
    """Where environments are kept."""
    return cache_directory() / "environments"


def _requirement(release: str | Path) -> tuple[str, str, str | None]:
    """What pip is asked for, a label for the folder, and what else the folder depends on (None for a version)."""
    path = Path(release)
    if path.is_file() and path.suffix == ".whl":
        return str(path.resolve()), path.name.split("-")[1], hashlib.sha256(path.read_bytes()).hexdigest()
    if (path / "src" / "transformers").is_dir():
        sources = sorted((path / "src" / "transformers").rglob("*.py"))
        state = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in sources]
        return str(path.resolve()), path.resolve().name, hashlib.sha256(repr(state).encode()).hexdigest()
    try:
        label = str(Version(str(release)))
    except InvalidVersion:
        raise ReleaseEnvironmentError(
            f"{release} is no version of transformers, and no wheel or checkout is at that path"
        ) from None
    return f"transformers=={label}", label, None


def _name(label: str, digest: str | None) -> str:
    """The folder's name: the environment is good for this Python and torch, above these packages."""
    below = (digest, sys.version, platform.machine(), version("torch"), _below(), _LAYOUT)
    return f"{label}-{hashlib.sha256(repr(below).encode()).hexdigest()[:12]}"


def _below() -> list[str]:
    """The folders of installed packages that this process uses."""
    names = ("site-packages", "dist-packages")
    return [entry for entry in dict.fromkeys(sys.path) if os.path.basename(entry) in names and os.path.isdir(entry)]


def _read(place: Path) -> Environment | None:
    """The environment in a folder, if it is a whole one."""
    try:
        versions: dict[str, str] = json.loads(read_ours(place / _ABOUT))["versions"]
        os.utime(place / _ABOUT)
    except CacheError:  # somebody else may have put it there, and it would be run
        raise
    except (OSError, ValueError, KeyError):
        return None
    return Environment(_python(place), versions, place)


def _python(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _build(place: Path, requirement: str, label: str) -> None:
    """Make an environment beside its place, and rename it. The caller holds the lock of the place."""
    building = place.with_name(f"{place.name}.building")
    _remove(place, building)  # what an earlier process left when it was killed
    try:
        # The system's own interpreter file is linked, so that the folder may be renamed afterwards.
        venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(building)
        packages = _site_packages(building)
        shutil.copyfile(Path(__file__).with_name("layer.py"), packages / "patchkit_layer.py")
        (packages / "patchkit_layer.pth").write_text("import patchkit_layer\n", encoding="utf-8")
        _write_layer(packages, hidden=[])
        versions = _install(building, requirement, label)
        (building / _ABOUT).write_text(
            json.dumps({"requirement": requirement, "versions": versions, "made": time.time()}), encoding="utf-8"
        )
        os.rename(building, place)
    except OSError as error:
        raise ReleaseEnvironmentError(
            f"no environment for transformers {label} can be made in {place.parent}: {error.strerror or error}"
        ) from error
    finally:
        _remove(building)


def _install(building: Path, requirement: str, label: str) -> dict[str, str]:
    """Install a release, and an older PEFT if the installed one does not run with it. Returns the versions."""
    problem = ""
    for peft in _PEFT_CHOICES:
        _pip(building, requirement, *peft, label=label)
        _write_layer(_site_packages(building), hidden=[])
        hidden = _python_json(building, _HIDDEN, json.dumps(_ROOTS))
        if isinstance(hidden, list):
            _write_layer(_site_packages(building), hidden=hidden)
            versions = _python_json(building, _PROBE)
            if isinstance(versions, dict):
                return versions
            problem = versions
        else:
            problem = hidden
    raise ReleaseEnvironmentError(
        f"transformers {label} was installed, but does not run with torch {version('torch')}: {problem}"
    )


def _write_layer(packages: Path, hidden: Sequence[str]) -> None:
    layer = {"below": _below(), "hidden": list(hidden)}
    (packages / "patchkit_layer.json").write_text(json.dumps(layer), encoding="utf-8")


def _site_packages(environment: Path) -> Path:
    (found,) = environment.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    return found


def _pip(building: Path, *requirements: str, label: str) -> None:
    constraints = building / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in _pins()), encoding="utf-8")
    command = ["-m", "pip", "--python", str(_python(building)), "install", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-compile", "--constraint", str(constraints)]
    if not os.path.isdir(requirements[0]):  # only a checkout may be built, which runs its code
        command += ["--only-binary", ":all:"]
    result = subprocess.run(
        [sys.executable, *command, *requirements],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_variables(),
    )
    if result.returncode:
        raise ReleaseEnvironmentError(f"transformers {label} cannot be installed: {_pip_error(result.stderr)}")


def _pins() -> Iterator[str]:
    for name in _PINNED:
        try:
            yield f"{name}=={version(name).split('+')[0]}"
        except PackageNotFoundError:
            continue


def _pip_error(said: str) -> str:
    errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    text = "; ".join(dict.fromkeys(errors)) or _last_line(said)
    # pip lists every version there is.
    return re.sub(r"\(from versions: (?:[^,)]*, )*([^,)]*)\)", r"(the newest is \1)", text)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


_PROBE = """
import json, platform, sys
import peft, torch, transformers
found = {m.__name__: m.__version__.split("+")[0] for m in (transformers, torch, peft)}
json.dump({**found, "python": platform.python_version()}, sys.stdout)
"""

# Every top-level module that belongs to no distribution that the roots need, directly or indirectly.
_HIDDEN = """
import json, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
kept, waiting = {"pip", "setuptools", "patchkit"}, list(json.loads(sys.argv[1]))
while waiting:
    name = canonicalize_name(waiting.pop())
    if name in kept - {"setuptools"}:
        continue
    kept.add(name)
    try:
        needed = map(Requirement, requires(name) or ())
    except PackageNotFoundError:
        continue
    waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
found = packages_distributions()
hidden = {top for top, names in found.items() if top.isidentifier() and not kept & set(map(canonicalize_name, names))}
json.dump(sorted(hidden - {"_distutils_hack", "pkg_resources"}), sys.stdout)
"""


def _python_json(building: Path, code: str, *arguments: str) -> Any:
    """What a piece of code writes as JSON in an environment, or the last line of its error."""
    result = subprocess.run(
        [_python(building), "-W", "ignore", "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=_variables(),
    )
    if result.returncode:
        return _last_line(result.stderr)
    return json.loads(result.stdout)


def _variables() -> dict[str, str]:
    """Environment variables of a process there: this very patchkit, and nothing else from outside."""
    import patchkit_kernels

    roots = {str(Path(module.__file__ or "").parents[1]) for module in (patchkit, patchkit_kernels)}
    paths = sorted(roots - set(_below()))
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return variables | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONNOUSERSITE": "1"}


def _trim(keep: Path) -> None:
    """Delete the environments that were used longest ago, beyond :data:`LIMIT`, but none used within the hour."""
    used = {}
    for about in environments_directory().glob(f"*/{_ABOUT}"):
        try:
            used[about.parent] = about.stat().st_mtime
        except OSError:  # another process deletes it
            continue
    for place in sorted(used, key=used.__getitem__)[: max(len(used) - LIMIT, 0)]:
        if place != keep and time.time() - used[place] > _IN_USE_SECONDS:
            _remove(place)


def _remove(*places: Path) -> None:
    for place in places:
        (place / _ABOUT).unlink(missing_ok=True)  # first of all: half a folder is no environment
        shutil.rmtree(place, ignore_errors=True)
