"""The static stage over many architectures and releases, in processes where that pays."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from patchkit.arch.spec import Architecture
from patchkit.cache.contents import trim
from patchkit.cache.storage import OUTCOMES, prepare_cache, warn_once
from patchkit.check.static.findings import Finding, findings_named, findings_of, findings_of_lost
from patchkit.errors import CacheError, PatchkitError, WorkerLostError
from patchkit.processes.workers import WorkerKind, ask_all
from patchkit.upstream.release import Release

_WORTH_PROCESSES = 24
"""Pairs of architecture and release from which processes are faster: starting one takes as long as a few pairs."""

_SECONDS = 600.0

ANSWER = f"{__name__}:answer"
"""What a worker runs."""
"""For one pair in a process, which takes about one second where nothing is known."""


def sweep(
    releases: Sequence[Release],
    architectures: Sequence[Architecture],
    *,
    processes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Finding]:
    """What the static stage finds of each architecture in each release, by release and architecture.

    Args:
        releases: to read.
        architectures: to look for.
        processes: how many to use; by default one for each core, if there is enough to do.
        progress: is told how many of how many pairs are done.

    Raises:
        ReleaseError: a file of a release cannot be read.
    """
    pairs = [(release, architecture) for release in releases for architecture in architectures]
    if processes is None:
        processes = (os.cpu_count() or 1) if len(pairs) >= _WORTH_PROCESSES else 1
    progress(0, len(pairs))
    try:
        prepare_cache()
    except CacheError as error:
        warn_once("outcomes", f"the cache is not used, which takes longer: {error}")
    found: dict[int, list[Finding]] = {}
    if processes <= 1:
        for index, (release, architecture) in enumerate(pairs):
            found[index] = findings_of(release, architecture)
            progress(len(found), len(pairs))
    else:
        for index, findings in _in_processes(pairs, processes):
            found[index] = findings
            progress(len(found), len(pairs))
    trim(OUTCOMES)
    return [finding for index in range(len(pairs)) for finding in found[index]]


def _in_processes(pairs: Sequence[tuple[Release, Architecture]], processes: int) -> Iterator[tuple[int, list[Finding]]]:
    requests = [pickle.dumps((release, architecture.name)) for release, architecture in pairs]
    kind = WorkerKind(Path(sys.executable), ANSWER, os.environ, Path.cwd(), _SECONDS, like_this=True)
    for index, said in ask_all(kind, requests, processes):
        release, architecture = pairs[index]
        if isinstance(said, WorkerLostError):  # a parser is native code: what it reads may end its process
            yield index, findings_of_lost(release, architecture.name, f"the process that read it died: {said}")
            continue
        found = pickle.loads(said)  # of a worker that runs patchkit alone, and nothing of a release
        if isinstance(found, PatchkitError):
            raise found
        yield index, found


def answer(request: bytes) -> bytes:
    """What a worker is asked: a pickled release and the name of an architecture.

    Returns:
        The pickled findings, or the error that tells why there are none.
    """
    try:
        return pickle.dumps(findings_named(*pickle.loads(request)))
    except PatchkitError as error:
        return pickle.dumps(error)
