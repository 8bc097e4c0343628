"""Environments with releases that are not installed, made once and kept in the cache directory.

An environment is a virtual environment that holds a release of transformers, of PEFT or of torch, or several, and
whatever these need in other versions than those installed (tokenizers, huggingface-hub, ...). Everything else, torch
above all where it was not asked for, is taken from the running environment, which lies below it on ``sys.path``. pip
decides what fits, with torch and its like pinned so that they are not installed again by chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from patchkit.cache.storage import cache_directory, locked, read_ours
from patchkit.check import TIME_LIMIT
from patchkit.check.numeric.installing import install
from patchkit.check.numeric.outcomes import VERSIONED, ArchitectureOutcome, joined
from patchkit.check.numeric.probe import plugin_modules
from patchkit.errors import CacheError, ReleaseEnvironmentError, WorkerLostError
from patchkit.processes.interpreters import empty_folder, package_folders, variables_for_release
from patchkit.processes.workers import Worker, WorkerKind, ask_all, sharing_cores
from patchkit.upstream.release import installed_release
from patchkit.upstream.wheels import PACKAGE

LIMIT = 30
"""How many environments are kept; that used longest ago goes first. One is 100 to 250 MB."""

CPU = "cpu"

_ROOTS = ("transformers", "peft", "torch", "triton", "libcst", "rich", "typer", "filelock", "packaging", "platformdirs")
_IMPORTED = ("transformers", "torch", "peft")
_WITH_TORCH = frozenset({"torch", "triton"})
# The installed PEFT works with every release since 4.48 that was tried; the older one is for those where it does not.
_PEFT_CHOICES = ((), ("peft==0.18.1",))
_ABOUT = "patchkit-environment.json"
_LAYOUT = 2  # of what is made here; another number makes every environment anew
_IN_USE_SECONDS = 3600.0
_MOST_MODELS = 100  # of one architecture; there are a few


@dataclass(frozen=True)
class Environment:
    """A Python with some transformers release.

    Attributes:
        python: its interpreter.
        versions: of transformers, torch, peft and Python.
        place: the folder of its transformers.
        path: its own folder, or None for the running environment.
    """

    python: Path
    versions: Mapping[str, str]
    place: Path
    path: Path | None = None

    def check(
        self, architectures: Sequence[str], *, jobs: int = 1, seconds: float = TIME_LIMIT, device: str = CPU
    ) -> Iterator[ArchitectureOutcome]:
        """The numeric stage in this environment, in processes of its own; each outcome as soon as it is there.

        Args:
            architectures: names of registered architectures.
            jobs: processes.
            seconds: for one tiny model.
            device: where models run, as torch names it; a device that is not there is a problem of each model.

        Yields:
            One outcome for each architecture. A process that dies, hangs, or says what cannot be, is a problem of
            the models that it had.

        Raises:
            ReleaseEnvironmentError: another release runs there than this environment is of.
        """
        with empty_folder() as folder:
            kind = sharing_cores(self.kind(folder, "patchkit.check.numeric.worker:answer", seconds), jobs)
            worker, plan = _plan(kind, architectures)
            waiting = {name: len(models) for name, models in plan.items() if isinstance(models, list)}
            for name, lost in plan.items():
                if isinstance(lost, WorkerLostError):
                    yield ArchitectureOutcome(name, self.versions, problems={name: str(lost)})
            pairs = [(name, model) for name in waiting for model in plan[name]]
            outcomes: dict[str, list[ArchitectureOutcome]] = {name: [] for name in waiting}
            asked = [{"architecture": name, "model": model} for name, model in pairs]
            requests = [json.dumps(one | ({} if device == CPU else {"device": device})).encode() for one in asked]
            for index, said in ask_all(kind, requests, jobs, worker):
                name, model = pairs[index]
                outcomes[name].append(self._outcome(name, model, said))
                if len(outcomes[name]) == waiting[name]:
                    yield joined(outcomes[name])

    def kind(self, folder: Path, function: str, seconds: float) -> WorkerKind:
        """Workers that run a function of patchkit, from bytes to bytes, in this environment."""
        variables = variables_for_release(folder)
        if self.path is None:
            return WorkerKind(self.python, function, variables, folder, seconds, like_this=True)
        return WorkerKind(self.python, function, variables, folder, seconds, shown=tuple(plugin_modules()))

    def _outcome(self, architecture: str, model: str, said: bytes | WorkerLostError) -> ArchitectureOutcome:
        """What a worker said of one model, if it can be; else that it is a problem."""
        shown = model or architecture
        if isinstance(said, WorkerLostError):
            return ArchitectureOutcome(architecture, self.versions, problems={shown: str(said)})
        try:
            data = json.loads(said)
            place, outcome = Path(data["place"]), ArchitectureOutcome.from_json(data["outcome"])
            if outcome.architecture != architecture or any(block.model != model for block in outcome.blocks):
                raise ValueError(f"it is of {outcome.architecture}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            problem = f"its process sent what is no outcome: {error}"
            return ArchitectureOutcome(architecture, self.versions, problems={shown: problem})
        if outcome.versions != self.versions or not _same(place, self.place):
            raise ReleaseEnvironmentError(
                f"the numeric check was to run {_told(self.versions)} from {self.place}, "
                f"but ran {_told(outcome.versions)} from {place}"
            )
        return outcome


def _plan(kind: WorkerKind, architectures: Sequence[str]) -> tuple[Worker | None, Mapping[str, Any]]:
    """A worker that has told which tiny models architectures have, and these; or why there are none."""
    worker = None
    try:
        worker = Worker(kind)
        said = json.loads(worker.ask(json.dumps({"models_of": list(architectures)}).encode()))
        if not isinstance(said, dict) or list(said) != list(dict.fromkeys(architectures)):
            raise ValueError("it does not say which tiny models there are")
        # One without a recipe is asked for all the same, and says so.
        plan = {name: [str(model) for model in models] or [""] for name, models in said.items()}
        if any(len(models) > _MOST_MODELS for models in plan.values()):
            raise ValueError("it names more tiny models than there are")
        return worker, plan
    except WorkerLostError as error:
        why = error
    except (ValueError, TypeError, RecursionError) as error:
        why = WorkerLostError(f"its process sent what is no answer: {error}")
    except BaseException:
        if worker is not None:
            worker.stop()
        raise
    if worker is not None:
        worker.stop()
    return None, dict.fromkeys(architectures, why)


def _told(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def running_environment() -> Environment:
    """The environment that this process runs in.

    Raises:
        ReleaseError: transformers is not installed.
    """
    release = installed_release()
    found = {"transformers": release.version, **{name: version(name).split("+")[0] for name in ("torch", "peft")}}
    return Environment(Path(sys.executable), {**found, "python": platform.python_version()}, release.location / PACKAGE)


@dataclass(frozen=True)
class Beside:
    """What an environment is to have beside its transformers, in other releases than those installed.

    Attributes:
        peft: what pip is asked for: ``peft==0.20.0``, or a path; empty for the installed one.
        peft_version: of that PEFT.
        torch: a version; empty for the installed one.
    """

    peft: str = ""
    peft_version: str = ""
    torch: str = ""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip is asked for."""
        return tuple(one for one in (self.peft, f"torch=={self.torch}" if self.torch else "") if one)

    def __str__(self) -> str:
        packages = {"PEFT": self.peft_version, "torch": self.torch}
        return ", ".join(f"{name} {version}" for name, version in packages.items() if version)


NOTHING_ELSE = Beside()


def environment_for(
    release: str | Path | None, *, expected: str = "", seconds: float = TIME_LIMIT, beside: Beside = NOTHING_ELSE
) -> Environment:
    """An environment with given releases: the running one if it has them, one from the cache, or a new one.

    Safe under two processes: one builds, the other waits. It is built aside and then renamed, so an interrupted build
    leaves nothing that could be taken for an environment.

    Args:
        release: of transformers, a version (``"4.57.6"``), or the path of a wheel or of a checkout; None for the
            installed one.
        expected: the version that a wheel or checkout is of, as its text says; empty if unknown.
        seconds: for pip, and for what is asked of the environment.
        beside: other packages in it.

    Raises:
        ReleaseEnvironmentError: pip cannot install them (no such release, no index, too new for this Python,
            disk full), it does not run, or what runs there is not what was to be installed.
        CacheError: the cache directory cannot be written to.
    """
    requirement, label, digest = ("", version(PACKAGE), None) if release is None else _requirement(release)
    if digest is None and label == version(PACKAGE):
        requirement = ""
        if not beside.requirements:
            return running_environment()
    wanted = _Wanted(
        requirement, label, expected or ("" if Path(requirement or ".").is_dir() else label), seconds, beside
    )
    place = environments_directory() / _name(label, digest, beside)
    if found := _read(place, wanted):
        return found
    with locked(place, seconds=3 * len(_PEFT_CHOICES) * seconds):
        if found := _read(place, wanted):
            return found
        _build(place, wanted)
        _trim(keep=place)
    found = _read(place, wanted)
    if found is None:
        raise ReleaseEnvironmentError(f"{place} was deleted while it was being made; try again")
    return found


@dataclass(frozen=True)
class _Wanted:
    """What an environment is to hold.

    Attributes:
        requirement: what pip is asked for; empty where transformers is the one that is installed below.
        label: for people and for the folder.
        version: of transformers; empty if any will do, as for a checkout that nobody has read.
        seconds: for pip, and for what is asked of the environment.
        beside: other packages.
    """

    requirement: str
    label: str
    version: str
    seconds: float
    beside: Beside = NOTHING_ELSE

    @property
    def requirements(self) -> tuple[str, ...]:
        """All that pip is asked for."""
        return (*((self.requirement,) if self.requirement else ()), *self.beside.requirements)

    @property
    def named(self) -> str:
        """For messages."""
        own = f"{PACKAGE} {self.label}" if self.requirement else ""
        return " with ".join(one for one in (own, str(self.beside)) if one)


def environments_directory() -> Path:
    """Where environments are kept."""
    return cache_directory() / "environments"


def _requirement(release: str | Path) -> tuple[str, str, str | None]:
    """What pip is asked for, a label for the folder, and what else the folder depends on (None for a version)."""
    if isinstance(release, Path):  # text is never one: a folder may be called 5.22.2
        path = release.resolve()
        if path.is_file() and path.suffix == ".whl":
            return str(path), path.name.split("-")[1], hashlib.sha256(path.read_bytes()).hexdigest()
        if (path / "src" / PACKAGE).is_dir():
            sources = sorted((path / "src" / PACKAGE).rglob("*.py"))
            state = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in sources]
            return str(path), path.name, hashlib.sha256(repr(state).encode()).hexdigest()
        raise ReleaseEnvironmentError(f"no wheel or checkout of {PACKAGE} is at {release}")
    try:
        label = str(Version(release))
    except InvalidVersion:
        raise ReleaseEnvironmentError(f"{release!r} is no version of {PACKAGE}") from None
    return f"{PACKAGE}=={label}", label, None


def _name(label: str, digest: str | None, beside: Beside = NOTHING_ELSE) -> str:
    """The folder's name: the environment is good for this Python and torch, above these packages."""
    below: tuple[object, ...] = (digest, sys.version, platform.machine(), version("torch"), package_folders(), _LAYOUT)
    if beside.requirements:
        label, below = (
            "-".join([label, *str(beside).lower().replace(",", "").split()]),
            (*below, beside, version("peft")),
        )
    return f"{label}-{hashlib.sha256(repr(below).encode()).hexdigest()[:12]}"


def _read(place: Path, wanted: _Wanted) -> Environment | None:
    """The environment in a folder, if it is a whole one, with packages of its own, of the wanted versions."""
    try:
        versions: dict[str, str] = json.loads(read_ours(place / _ABOUT))["versions"]
        package = _site_packages(place) / PACKAGE if wanted.requirement else running_environment().place
        if set(versions) != set(VERSIONED) or versions[PACKAGE] != (wanted.version or versions[PACKAGE]):
            return None
        own = [_site_packages(place) / name for name in _own(wanted)]
        if not all((folder / "__init__.py").is_file() for folder in own):
            return None
        os.utime(place / _ABOUT)
    except CacheError:  # somebody else may have put it there, and it would be run
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Environment(_python(place), versions, package, place)


def _python(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _build(place: Path, wanted: _Wanted) -> None:
    """Make an environment beside its place, and rename it. The caller holds the lock of the place."""
    building = place.with_name(f"{place.name}.building")
    _remove(place, building)  # what an earlier process left when it was killed
    try:
        # The system's own interpreter file is linked, so that the folder may be renamed afterwards.
        venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(building)
        packages = _site_packages(building)
        shutil.copyfile(Path(__file__).with_name("patchkit_layer.py"), packages / "patchkit_layer.py")
        (packages / "patchkit_layer.pth").write_text("import patchkit_layer\n", encoding="utf-8")
        _write_layer(packages, hidden=[])
        versions = _fill(building, wanted)
        (building / _ABOUT).write_text(
            json.dumps({"requirement": wanted.requirement, "versions": versions, "made": time.time()}), encoding="utf-8"
        )
        os.rename(building, place)
    except OSError as error:
        raise ReleaseEnvironmentError(
            f"no environment for {wanted.named} can be made in {place.parent}: {error.strerror or error}"
        ) from error
    finally:
        _remove(building)


def _fill(building: Path, wanted: _Wanted) -> dict[str, str]:
    """Install releases, and an older PEFT if the installed one does not run with them. Returns the versions."""
    problem, torch = "", wanted.beside.torch
    for peft in _PEFT_CHOICES[:1] if wanted.beside.peft or not wanted.requirement else _PEFT_CHOICES:
        options: dict[str, Any] = {"named": wanted.named} if wanted.beside.requirements else {}
        if torch:
            options["free"] = _WITH_TORCH
        install(_python(building), (*wanted.requirements, *peft), wanted.label, wanted.seconds, **options)
        _write_layer(_site_packages(building), hidden=[])
        try:
            hidden = _ask(building, "patchkit.check.numeric.probe:unneeded", _ROOTS, wanted.seconds)
            _write_layer(_site_packages(building), hidden=hidden)
            found = _ask(building, "patchkit.check.numeric.probe:versions_and_place", _IMPORTED, wanted.seconds)
        except WorkerLostError as lost:
            problem = str(lost)
            continue
        return _confirmed(building, wanted, found)
    raise ReleaseEnvironmentError(
        f"{wanted.named} was installed, but does not run with torch {torch or version('torch')}: {problem}"
    )


def _confirmed(building: Path, wanted: _Wanted, found: Any) -> dict[str, str]:
    """The versions that an environment tells, if what was installed is its own and what was wanted.

    Raises:
        ReleaseEnvironmentError: it is not: pip put it elsewhere, and what is imported is that of the environment below.
    """
    try:
        place, versions = str(found["place"]), {str(name): str(text) for name, text in found["versions"].items()}
        versions[PACKAGE] = str(Version(versions[PACKAGE]))
    except (TypeError, KeyError, AttributeError, InvalidVersion) as error:
        raise ReleaseEnvironmentError(f"{PACKAGE} {wanted.label} does not tell its version: {error}") from error
    for name in [name for name in _own(wanted) if name != PACKAGE]:
        _confirm_own(name, building, wanted, found)
    if not wanted.requirement:
        return versions
    if not place or not _same(Path(place).parent, _site_packages(building)):
        raise ReleaseEnvironmentError(
            f"{PACKAGE} {wanted.label} was not installed into its environment: "
            f"what is imported there is {versions[PACKAGE]} in {place or 'no folder'}"
        )
    if wanted.version and versions[PACKAGE] != str(Version(wanted.version)):
        raise ReleaseEnvironmentError(
            f"{PACKAGE} {wanted.version} was asked for, but {wanted.requirement} says that it is {versions[PACKAGE]}"
        )
    return versions


def _own(wanted: _Wanted) -> list[str]:
    """The packages that lie in the environment itself, and not below it."""
    beside = wanted.beside
    chosen = {PACKAGE: wanted.requirement, "peft": beside.peft, "torch": beside.torch}
    return [name for name, asked in chosen.items() if asked]


def _confirm_own(name: str, building: Path, wanted: _Wanted, found: Any) -> None:
    """That a package beside transformers was installed into the environment, in its version.

    Raises:
        ReleaseEnvironmentError: it was not.
    """
    expected = wanted.beside.torch if name == "torch" else wanted.beside.peft_version
    try:
        place, told = str(found["places"][name]), str(found["versions"][name])
        same = not expected or Version(told) == Version(expected)
    except (TypeError, KeyError, InvalidVersion) as error:
        raise ReleaseEnvironmentError(f"{wanted.named} does not tell its version: {error}") from error
    if not same or not _same(Path(place).parent, _site_packages(building)):
        raise ReleaseEnvironmentError(
            f"{name} {expected} was not installed into its environment: what is imported there is {told} in {place}"
        )


def _ask(building: Path, function: str, names: Sequence[str], seconds: float) -> Any:
    """What a function says in an environment, as JSON.

    Raises:
        WorkerLostError: it fails, or says nothing.
    """
    with empty_folder() as folder:
        worker = Worker(WorkerKind(_python(building), function, variables_for_release(folder), folder, seconds))
        try:
            return json.loads(worker.ask(json.dumps(names).encode()))
        except (ValueError, RecursionError) as error:
            raise WorkerLostError(f"its process sent what is no answer: {error}") from error
        finally:
            worker.stop()


def _write_layer(packages: Path, hidden: Sequence[str]) -> None:
    layer = {"below": package_folders(), "hidden": list(hidden)}
    (packages / "patchkit_layer.json").write_text(json.dumps(layer), encoding="utf-8")


def _site_packages(environment: Path) -> Path:
    for folder in environment.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages"):
        return folder
    raise FileNotFoundError(f"{environment} has no site-packages")


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
