"""The cache is bounded, and safe under two processes and under a kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_releases import LLAMA, SMALL_LLAMA, make_wheel

from patchkit.cache import contents as cache
from patchkit.cache import storage
from patchkit.cache.storage import cache_directory
from patchkit.errors import CacheError
from patchkit.upstream import kept_releases
from patchkit.upstream.kept_releases import fetch

WRITER = """
import sys
from pathlib import Path
from patchkit.cache import contents as cache
from patchkit.upstream.kept_releases import fetch
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
    chance = random.Random(1)
    filler = {f"transformers/models/f{n}/modeling_f.py": f"x = '{chance.randbytes(2**19).hex()}'\n" for n in range(4)}
    make_wheel(tmp_path / "wheels", files={LLAMA: SMALL_LLAMA, **filler})
    return tmp_path / "wheels"


def test_two_processes_at_once(wheels: Path) -> None:
    for process in [writer(wheels, 3), writer(wheels, 3)]:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    assert fetch("4.90.0", wheels).read(LLAMA) == SMALL_LLAMA


KEEPER = """
import sys
from pathlib import Path
from patchkit.upstream import kept_releases
from patchkit.upstream.wheels import read_wheel
place, wheel = Path(sys.argv[1]), read_wheel(Path(sys.argv[2]))
content = place.read_bytes()
kept_releases.packed = lambda *_: content  # packing takes most of the time, and nothing is written meanwhile
print("ready", flush=True)
while True:
    kept_releases._keep(place, wheel, "", "wheel", "")
"""


def test_a_kill_at_any_moment_leaves_nothing_half_written(wheels: Path) -> None:
    """Writers are killed at random moments, while somebody looks all the time: an archive is whole whenever it is read."""
    place, chance = fetch("4.90.0", wheels).location, random.Random(5)
    whole = place.read_bytes()
    assert len(whole) > 2**20, "or it is written at once"
    for _ in range(3):
        command = [sys.executable, "-c", KEEPER, str(place), str(next(wheels.iterdir()))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                for _ in range(chance.randrange(20, 60)):
                    is_whole = place.read_bytes() == whole  # a megabyte is not worth showing
                    assert is_whole
            finally:
                process.send_signal(signal.SIGKILL)
        release = fetch("4.90.0", wheels)
        assert release.read(LLAMA) == SMALL_LLAMA
        assert len(release.model_files()) == 5


def make(path: str, content: bytes = b"xyz", *, age: float = 0.0) -> Path:
    """A file in the cache, or above it."""
    place = cache_directory() / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    when = time.time() - age
    os.utime(place, (when, when))
    return place


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


OUTCOME = f"outcomes/ab/{'c' * 62}.json"
ENVIRONMENT = "environments/5.22.2-0123456789ab"


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.prepare_cache()
    for age, version in enumerate(["5.3.0", "5.2.0", "5.1.0"]):
        make(f"sources/transformers-{version}.zip", b"x" * 100, age=1e8 + age)
    own = make("sources/my own.zip", b"x" * 10_000, age=2e8)
    cache.touch(cache_directory() / "sources/transformers-5.1.0.zip")
    monkeypatch.setitem(cache.LIMITS, cache.SOURCES, 200)
    cache.trim(cache.SOURCES)
    left = {path.name for path in own.parent.iterdir()}
    assert left == {"my own.zip", "transformers-5.3.0.zip", "transformers-5.1.0.zip"}, "the longest unused goes first"


def test_what_a_killed_process_left_goes_and_what_is_being_written_stays() -> None:
    storage.prepare_cache()
    leftovers = [
        "sources/.transformers-5.2.0.zip.abcd_123.tmp",
        "sources/.fetch-abcd_123/transformers-5.2.0-py3-none-any.whl",
        "sources/.fetch-abcd_123/pip-unpack-x/transformers-5.2.0-py3-none-any.whl",
        ".ledger.jsonl.abcd_123.tmp",
        f"{ENVIRONMENT}.building/lib/half.py",
    ]
    theirs = [
        "sources/mine.tmp",
        "sources/.mine.zip.abcd_123.tmp",
        ".bashrc.abcd_123.tmp",
        "environments/mine.building/x",
    ]
    current = [name.replace("abcd_123", "zzzz_999").replace("0123456789ab", "ba9876543210") for name in leftovers]
    for name in (*leftovers, *theirs):
        make(name)
    for path in cache_directory().rglob("*"):
        if path.name != storage.TAG:
            os.utime(path, (1e9, 1e9))
    for name in (*current, "sources/transformers-5.2.0.zip"):
        make(name)
    cache.trim(cache.SOURCES)
    assert files_below(cache_directory()) - {f"{ENVIRONMENT}.lock"} == {
        *theirs, *current, "sources/transformers-5.2.0.zip", storage.TAG
    }  # fmt: skip


def test_an_environment_that_is_being_made_stays_however_long_it_takes() -> None:
    storage.prepare_cache()
    half = make(f"{ENVIRONMENT}.building/half.py")
    os.utime(half.parent, (1e9, 1e9))
    with storage.locked(cache_directory() / ENVIRONMENT):
        cache.trim(cache.SOURCES)
        assert cache.clear().left == (half.parent,)
    cache.trim(cache.SOURCES)
    assert not half.exists()


@pytest.mark.parametrize("name", ["table.md", "ledger.jsonl"])
def test_what_a_killed_writer_left_beside_a_file_goes_with_the_next_write(tmp_path: Path, name: str) -> None:
    """Also outside of the cache: the shipped ledger, the matrix."""
    for left in (f".{name}.abcd_123.tmp", f".{name}.zzzz_999.tmp", f".{name}.mine.tmp", f"x.{name}.abcd_123.tmp"):
        (tmp_path / left).touch()
        if "zzzz" not in left:
            os.utime(tmp_path / left, (1e9, 1e9))
    storage.write_whole(tmp_path / name, "text")
    assert files_below(tmp_path) == {name, f".{name}.zzzz_999.tmp", f".{name}.mine.tmp", f"x.{name}.abcd_123.tmp"}


def test_a_wheel_that_was_being_fetched_is_in_the_cache_and_not_lost_elsewhere(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def download(version: str, folder: Path, wheels: Path | None, package: str) -> Path:
        places.append(folder)
        return next(wheels.glob("*.whl"))  # type: ignore[union-attr]

    monkeypatch.setattr(kept_releases, "download_wheel", download)
    fetch("4.90.0", wheels)
    (place,) = places
    assert storage.is_known(place, cache_directory()), "so that it is swept"
    assert not place.exists()


class TestClearing:
    @pytest.mark.parametrize("marked", [True, False], ids=["marked", "from before there were tags"])
    def test_everything_that_patchkit_wrote(self, marked: bool) -> None:
        if marked:
            storage.prepare_cache()
        for name in ("sources/transformers-5.2.0.zip", OUTCOME, "ledger.jsonl", f"{ENVIRONMENT}/lib/python.py"):
            make(name)
        with pytest.raises(
            CacheError, match=r"the cache has no .source.; it has environments, ledger\.jsonl, outcomes, so"
        ):
            cache.clear("source")
        assert cache.clear("sources") == cache.Cleared(3, ())
        assert [entry.name for entry in cache.entries()] == ["environments", "ledger.jsonl", "outcomes"]
        assert cache.clear() == cache.Cleared(9, ())
        assert cache.entries() == []
        left = files_below(cache_directory())
        assert {name for name in left if not name.endswith(".lock")} == {storage.TAG}
        assert storage.is_marked(cache_directory())

    def test_nothing_of_a_home_directory(self) -> None:
        """The thing itself: the variable names a folder full of a person's files, some with names of patchkit's."""
        home = ["thesis.tex", ".ssh/id_ed25519", "sources/program.c", "outcomes/2024.csv", "environments/home/x.py"]
        for name in home:
            make(name)
        for name in (None, "sources", "ledger.jsonl"):
            with pytest.raises(CacheError, match=r"is not a cache of patchkit.*nothing was deleted"):
                cache.clear(name)
        cache.trim(cache.SOURCES)
        assert files_below(cache_directory()) == set(home)

    @pytest.mark.parametrize(
        "foreign",
        [
            "notes.txt",
            "sources/notes.txt",
            "sources/transformers-5.2.0.tar.gz",
            "sources/deep/transformers-5.2.0.zip",
            "outcomes/2024.csv",
            "outcomes/ab/2024.json",
            "environments/mine/x.py",
            "environments/notes.txt",
            "ledger.jsonl.bak",
        ],
    )
    @pytest.mark.parametrize("marked", [True, False])
    def test_what_patchkit_did_not_write_stays(self, foreign: str, marked: bool) -> None:
        if marked:
            storage.prepare_cache()
        make("sources/transformers-5.2.0.zip")
        make(foreign)
        if marked:
            left = cache.clear().left
            assert all(foreign.startswith(path.relative_to(cache_directory()).as_posix()) for path in left)
            assert bool(left) == ("/" in foreign)
            assert files_below(cache_directory()) == {foreign, storage.TAG}
        else:
            with pytest.raises(CacheError, match="is not a cache of patchkit"):
                cache.clear()
            assert files_below(cache_directory()) == {foreign, "sources/transformers-5.2.0.zip"}

    @pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
    def test_no_link_is_followed(self, tmp_path: Path) -> None:
        storage.prepare_cache()
        precious = tmp_path / "precious"
        for name in ("transformers-5.2.0.zip", f"ab/{'c' * 62}.json", "5.22.2-0123456789ab/python.py", "ledger.jsonl"):
            (precious / name).parent.mkdir(parents=True, exist_ok=True)
            (precious / name).write_text("precious")
        before = files_below(precious)
        links = {
            "sources": precious,
            "outcomes/ab": precious / "ab",
            ENVIRONMENT: precious / "5.22.2-0123456789ab",
            "ledger.jsonl": precious / "ledger.jsonl",
        }
        for name, target in links.items():
            (cache_directory() / name).parent.mkdir(exist_ok=True)
            (cache_directory() / name).symlink_to(target)
        inside = make("environments/5.23.0-0123456789ab/python.py")
        (inside.parent / "lib").symlink_to(precious)
        cache.clear()
        cache.trim(cache.SOURCES)
        assert files_below(precious) == before
        assert not inside.exists()

    def test_a_tag_of_another_program_marks_nothing(self) -> None:
        make("wheels/a.whl")
        make(
            storage.TAG, b"Signature: 8a477f597d28d172789f06886806bc55\n# This file is a cache tag created by other.\n"
        )
        with pytest.raises(CacheError, match="is not a cache of patchkit"):
            cache.clear()

    @pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
    def test_a_tag_that_is_a_link_marks_nothing(self, tmp_path: Path) -> None:
        storage.prepare_cache()
        (cache_directory() / storage.TAG).rename(tmp_path / "tag")
        (cache_directory() / storage.TAG).symlink_to(tmp_path / "tag")
        make("thesis.tex")
        with pytest.raises(CacheError, match="is not a cache of patchkit"):
            cache.clear()


def test_a_new_cache_is_marked_and_is_this_users_alone() -> None:
    before = os.umask(0)
    try:
        storage.write_whole(cache_directory() / OUTCOME, "{}")
        with storage.locked(cache_directory() / ENVIRONMENT):
            pass
    finally:
        os.umask(before)
    tag = (cache_directory() / "CACHEDIR.TAG").read_bytes()
    assert tag[:43] == b"Signature: 8a477f597d28d172789f06886806bc55"
    if os.name != "nt":
        folders = [cache_directory(), *(path for path in cache_directory().rglob("*") if path.is_dir())]
        assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    assert storage.read_ours(cache_directory() / OUTCOME) == b"{}"


def test_nothing_is_written_into_somebody_elses_folder() -> None:
    make("thesis.tex")
    for write in (
        lambda: storage.write_whole(cache_directory() / OUTCOME, "{}"),
        lambda: storage.locked(cache_directory() / ENVIRONMENT).__enter__(),
        lambda: fetch("4.90.0", Path("nowhere")),
    ):
        with pytest.raises(CacheError, match=r"holds thesis\.tex; PATCHKIT_CACHE names another cache directory"):
            write()
    assert files_below(cache_directory()) == {"thesis.tex"}, "above all no tag: backups leave out what is tagged"
