"""The static stage over many architectures and releases, in processes where that pays."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

from patchkit.arch.spec import Architecture
from patchkit.check import cache
from patchkit.check.children import without_interruptions
from patchkit.check.releases import Release
from patchkit.check.static import Finding, examine, examine_named, unexaminable
from patchkit.check.storage import prepare_cache, warn_once
from patchkit.errors import CacheError

_WORTH_PROCESSES = 24
"""Pairs of architecture and release from which processes are faster: starting one takes as long as a few pairs."""


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
            found[index] = examine(release, architecture)
            progress(len(found), len(pairs))
    else:
        # Spawned: a fork would copy the threads that draw progress and fetch wheels.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(pairs)), mp_context=context) as pool:
            try:
                with without_interruptions():
                    futures = {pool.submit(examine_named, r, a.name): i for i, (r, a) in enumerate(pairs)}
                for future in as_completed(futures):
                    with suppress(BrokenProcessPool):
                        found[futures[future]] = future.result()
                        progress(len(found), len(pairs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for index, (release, architecture) in enumerate(pairs):
            if index not in found:  # one process died, and took the rest with it: each alone, to see which
                found[index] = _examine_alone(release, architecture.name)
                progress(len(found), len(pairs))
    cache.trim(cache.OUTCOMES)
    return [finding for index in range(len(pairs)) for finding in found[index]]


def _examine_alone(release: Release, architecture: str) -> list[Finding]:
    """:func:`examine_named` in a process of its own, which may die of what it reads: a parser is native code."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(examine_named, release, architecture).result()
        except BrokenProcessPool:
            return unexaminable(release, architecture, "the process that read it died")
