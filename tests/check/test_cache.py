"""The cache is bounded, and safe under two processes and under a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_releases import LLAMA, SMALL_LLAMA, make_wheel

from patchkit.check import cache
from patchkit.check.releases import fetch
from patchkit.check.storage import cache_directory
from patchkit.errors import CacheError

WRITER = """
import sys
from pathlib import Path
from patchkit.check import cache
from patchkit.check.releases import fetch
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    release = fetch("4.90.0", Path(sys.argv[1]))
    release.location.unlink(missing_ok=True)
fetch("4.90.0", Path(sys.argv[1]))
"""


def writer(wheels: Path, times: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(wheels), str(times)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    filler = {f"transformers/models/filler{n}/modeling_filler.py": f"x = {n}\n" * 2000 for n in range(20)}
    make_wheel(tmp_path / "wheels", files={LLAMA: SMALL_LLAMA, **filler})
    return tmp_path / "wheels"


def test_two_processes_at_once(wheels: Path) -> None:
    for process in [writer(wheels, 3), writer(wheels, 3)]:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    assert fetch("4.90.0", wheels).read(LLAMA) == SMALL_LLAMA


def test_a_kill_at_any_moment_leaves_nothing_half_written(wheels: Path) -> None:
    for delay in (0.0, 0.01, 0.05):
        process = writer(wheels, 10_000)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        release = fetch("4.90.0", wheels)
        assert release.read(LLAMA) == SMALL_LLAMA
        assert len(release.model_files()) == 21


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache_directory() / cache.SOURCES
    folder.mkdir(parents=True)
    for age, name in enumerate(["new", "middle", "old"]):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    cache.touch(folder / "old")
    monkeypatch.setitem(cache.LIMITS, cache.SOURCES, 200)
    cache.trim(cache.SOURCES)
    assert {path.name for path in folder.iterdir()} == {"new", "old"}, "what was used longest ago goes first"


def test_what_a_killed_process_left_goes_and_what_is_being_written_stays() -> None:
    folder = cache_directory() / cache.SOURCES
    folder.mkdir(parents=True)
    for name in ("abandoned.tmp", "current.tmp", "whole.zip"):
        (folder / name).touch()
    os.utime(folder / "abandoned.tmp", (1e9, 1e9))
    cache.trim(cache.SOURCES)
    assert {path.name for path in folder.iterdir()} == {"current.tmp", "whole.zip"}


def test_clearing() -> None:
    for name in ("sources/a/b", "outcomes/c"):
        place = cache_directory() / name
        place.parent.mkdir(parents=True)
        place.write_bytes(b"xyz")
    with pytest.raises(CacheError, match="the cache has no 'source'; it has outcomes, sources"):
        cache.clear("source")
    assert cache.clear("sources") == 3
    assert [entry.name for entry in cache.entries()] == ["outcomes"]
    assert cache.clear() == 3
    assert cache.entries() == []
