"""Every model of a release in brief: which parts of its attention and MLP classes are rewritten whole.

This is what the scan of :mod:`patchkit.check.static.scan` says, summed up for each model file. What a file comes to
depends on its text and on the rooms that read it only, so it is remembered by a hash of both: half of the files of a
release are those of the release before.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import patchkit
from patchkit.arch.spec import BLOCK_PARTS, Part
from patchkit.cache.contents import trim
from patchkit.cache.digests import digest, sources_digest
from patchkit.cache.storage import OUTCOMES, cache_directory, read_ours, warn_once, write_whole
from patchkit.check.static.scan import Scanned, scan_text
from patchkit.errors import CacheError, PatchkitError, ReleaseError, RewriteError, WorkerLostError
from patchkit.processes.workers import WorkerKind, ask_all
from patchkit.upstream.release import Release

_SECONDS = 900.0
_READING = ("arch", "derivation", "rewrite", "upstream", "check/static")
"""The rooms that decide what a file comes to."""

ANSWER = f"{__name__}:answer"
"""What a worker runs."""

WHOLE, SOME, LEFT, NONE = "○", "◇", "?", "·"


@dataclass(frozen=True)
class ClassInBrief:
    """One class that is an attention or an MLP by its structure.

    Attributes:
        name: of the class.
        parts: what the rewriter makes of each of its parts: whole, some of it, or nothing.
        why: what is left and why, in one line; empty if nothing is.
    """

    name: str
    parts: Mapping[Part, str]
    why: str = ""


@dataclass(frozen=True)
class ModelInBrief:
    """One model file of one release.

    Attributes:
        model: its folder, such as ``qwen3``; with the name of the file where a folder has several.
        classes: its attention and MLP classes.
        others: how many more classes call a linear layer, which is patched where it stands.
    """

    model: str
    classes: tuple[ClassInBrief, ...] = ()
    others: int = 0

    @property
    def cell(self) -> str:
        """One symbol for each of q/k/v, o and MLP: all classes whole, some of it, nothing, or no such class."""
        return "".join(self._symbol(part) for part in BLOCK_PARTS)

    def _symbol(self, part: Part) -> str:
        found = {one.parts[part] for one in self.classes if part in one.parts}
        if not found:
            return NONE
        return found.pop() if len(found) == 1 else SOME


def models_of(release: Release) -> list[ModelInBrief]:
    """Every model file of a release in brief, by name.

    Args:
        release: what to read; nothing of it is imported.

    Raises:
        ReleaseError: the release cannot be read.
    """
    paths = release.model_files()
    folders = [path.split("/")[-2] for path in paths]
    found = []
    for path, folder in zip(paths, folders, strict=True):
        file = path.rpartition("/")[2].removesuffix(".py").removeprefix("modeling_")
        name = folder if folders.count(folder) == 1 or file == folder else f"{folder}/{file}"
        try:
            text = release.read(path) or ""
        except ReleaseError:
            raise
        except RewriteError:  # a file that is no text says nothing of the others
            text = ""
        found.append(_remembered(name, text, path))
    return sorted(found, key=lambda one: one.model)


def sweep_models(
    releases: Sequence[Release],
    *,
    processes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, list[ModelInBrief]]:
    """:func:`models_of` for several releases, in processes of their own.

    Args:
        releases: to read.
        processes: how many to use; by default one for each core.
        progress: is told how many of how many releases are done.

    Raises:
        ReleaseError: a release cannot be read, or the process that read it was lost.
    """
    progress(0, len(releases))
    found: dict[str, list[ModelInBrief]] = {}
    for release, models in _in_processes(releases, processes or os.cpu_count() or 1):
        found[release.version] = models
        progress(len(found), len(releases))
    trim(OUTCOMES)
    return {release.version: found[release.version] for release in releases}


def _in_processes(releases: Sequence[Release], processes: int) -> Iterator[tuple[Release, list[ModelInBrief]]]:
    kind = WorkerKind(Path(sys.executable), ANSWER, os.environ, Path.cwd(), _SECONDS, like_this=True)
    for index, said in ask_all(kind, [pickle.dumps(release) for release in releases], processes):
        release = releases[index]
        if isinstance(said, WorkerLostError):  # a parser is native code: what it reads may end its process
            raise ReleaseError(f"{release.package} {release.version}: the process that read it died: {said}")
        found = pickle.loads(said)  # of a worker that runs patchkit alone, and nothing of a release
        if isinstance(found, PatchkitError):
            raise found
        yield release, found


def answer(request: bytes) -> bytes:
    """What a worker is asked, a pickled release, and its models or the error that tells why there are none."""
    try:
        return pickle.dumps(models_of(pickle.loads(request)))
    except PatchkitError as error:
        return pickle.dumps(error)


# ---- one file


def _brief(name: str, text: str, path: str) -> ModelInBrief:
    scanned = scan_text(text, path)
    classes = [one for one in scanned if one.block is not None and not set(one.block.parts).isdisjoint(BLOCK_PARTS)]
    others = sum(bool(one.class_name) for one in scanned) - len(classes)
    return ModelInBrief(name, tuple(map(_class, classes)), others)


def _class(one: Scanned) -> ClassInBrief:
    parts = {part: WHOLE if it.whole else SOME if it.rules else LEFT for part, it in one.parts.items()}
    why = "; ".join(f"{part}: {reason}" for part, it in one.parts.items() for reason in it.reasons)
    return ClassInBrief(one.class_name, parts, " ".join(why.split()))


@lru_cache(maxsize=1)
def _readers() -> str:
    root = Path(patchkit.__file__).parent
    return digest([sources_digest(root / room) for room in _READING])


def _remembered(name: str, text: str, path: str) -> ModelInBrief:
    """What a file comes to, from the cache if a file of this very text was read before."""
    try:
        key = digest(["model", _readers(), text])
        place = cache_directory() / OUTCOMES / key[:2] / f"{key[2:]}.json"
        if (known := _kept(place, name)) is not None:
            return known
        found = _brief(name, text, path)
        kept = {
            "classes": [
                [one.name, {str(part): one.parts[part] for part in one.parts}, one.why] for one in found.classes
            ],
            "others": found.others,
        }
        write_whole(place, json.dumps(kept))
        return found
    except CacheError as error:
        warn_once("outcomes", f"the cache is not used, which takes longer: {error}")
        return _brief(name, text, path)


def _kept(place: Path, name: str) -> ModelInBrief | None:
    """What a file of the cache says; None if there is none, or it is not what is kept here.

    Raises:
        CacheError: it cannot be read, or must not be believed.
    """
    try:
        data = json.loads(read_ours(place))
        classes = tuple(ClassInBrief(str(one), _parts(parts), str(why)) for one, parts, why in data["classes"])
        return ModelInBrief(name, classes, int(data["others"]))
    except CacheError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _parts(data: Mapping[str, str]) -> dict[Part, str]:
    found: dict[Part, str] = {part: data[part] for part in BLOCK_PARTS if part in data}
    if len(found) != len(data) or not set(found.values()) <= {WHOLE, SOME, LEFT}:
        raise ValueError("a part or its symbol is none")
    return found
