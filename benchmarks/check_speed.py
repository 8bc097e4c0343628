"""How long the static side of ``patchkit check`` takes: ``python -m benchmarks.check_speed [--transformers 5.23.0]``.

Each line is the fastest of a few runs, since other work on the machine can only add to it; the seconds that the
processor worked, in all processes, are those that other work adds least to. The release has to be in the
cache already, or is fetched first and not counted; outcomes are measured without the cache and with it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from patchkit.arch.registry import architectures, find
from patchkit.arch.spec import Architecture
from patchkit.cache.storage import CACHE_VARIABLE, SOURCES
from patchkit.check.static.sweep import sweep
from patchkit.upstream.classes import class_table
from patchkit.upstream.kept_releases import fetch
from patchkit.upstream.release import Release


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transformers", default="5.23.0", help="the release to read")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    release = fetch(options.transformers)
    upstream = [one for one in architectures().values() if one.module.startswith("transformers.")]
    one = [find("gemma3")]
    rows = [
        ("patchkit --help", 0.3, _fastest(options.runs, _help)),
        ("one architecture, nothing known", 1.0, _fastest(options.runs, lambda: _static(release, one, fresh=True))),
        ("one architecture, seen before", 1.0, _fastest(options.runs, lambda: _static(release, one, fresh=False))),
        (
            f"all {len(upstream)} architectures, nothing known",
            60.0,
            _fastest(options.runs, lambda: _static(release, upstream, fresh=True)),
        ),
        (
            f"all {len(upstream)} architectures, seen before",
            60.0,
            _fastest(options.runs, lambda: _static(release, upstream, fresh=False)),
        ),
    ]
    table = Table(title=f"transformers {release.version}, {os.cpu_count()} cores", title_justify="left")
    for heading in ("", "seconds", "of the processor", "aim"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, aim, (clock, worked) in rows:
        table.add_row(name, f"{clock:.2f}", f"{worked:.2f}", f"{aim:.1f}")
    Console().print(table)


Seconds = tuple[float, float]
"""On the clock, and of the processor."""


def _fastest(runs: int, action: Callable[[], Seconds]) -> Seconds:
    clock, worked = zip(*(action() for _ in range(runs)), strict=True)
    return min(clock), min(worked)


def _now() -> Seconds:
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


def _since(start: Seconds) -> Seconds:
    now = _now()
    return now[0] - start[0], now[1] - start[1]


def _help() -> Seconds:
    start = _now()
    subprocess.run([sys.executable, "-m", "patchkit.cli.main", "--help"], check=True, stdout=subprocess.DEVNULL)
    return _since(start)


def _static(release: Release, chosen: list[Architecture], *, fresh: bool) -> Seconds:
    """Seconds of the static stage, with an empty cache of outcomes or one that has them all."""
    with _own_cache(release) as own:
        if not fresh:
            sweep([own], chosen, processes=1)
        class_table.cache_clear()
        start = _now()
        sweep([own], chosen)
        return _since(start)


@contextmanager
def _own_cache(release: Release) -> Iterator[Release]:
    """The release in a cache directory of its own, without outcomes."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, SOURCES, release.location.name)
        place.parent.mkdir()
        shutil.copy(release.location, place)
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield fetch(release.version)
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


if __name__ == "__main__":
    main()
