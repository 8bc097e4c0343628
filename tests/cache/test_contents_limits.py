"""What is listed, trimmed and cleared: each entry alone, each limit on both sides, and whatever another process does."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

import filelock
import pytest

from patchkit.cache import contents as cache
from patchkit.cache import storage
from patchkit.cache.contents import Cleared
from patchkit.cache.storage import ENVIRONMENTS, LEDGER, OUTCOMES, SOURCES, cache_directory

OUTCOME = f"outcomes/ab/{'c' * 62}.json"
ENVIRONMENT = "environments/5.22.2-0123456789ab"
FILES = {
    ENVIRONMENTS: f"{ENVIRONMENT}/lib/python.py",
    LEDGER: LEDGER,
    OUTCOMES: OUTCOME,
    SOURCES: "sources/transformers-5.2.0.zip",
}
SUBSETS = [chosen for number in range(5) for chosen in itertools.combinations(FILES, number)]


def make(name: str, size: int = 3, *, used: float | None = None) -> Path:
    place = cache_directory() / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x" * size)
    if used is not None:
        os.utime(place, (used, used))
    return place


def below(folder: Path, *, folders: bool = True) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if folders or path.is_file()}


# ---- what is listed


@pytest.mark.parametrize("there", SUBSETS, ids=",".join)
@pytest.mark.parametrize("others", ["are not there", "are empty"])
def test_every_entry_alone_and_with_others(there: tuple[str, ...], others: str) -> None:
    storage.prepare_cache()
    for name in FILES:
        if name in there:
            make(FILES[name])
        elif others == "are empty" and name != LEDGER:
            (cache_directory() / name).mkdir()
    assert [entry.name for entry in cache.entries()] == sorted(there)
    assert cache.clear() == Cleared(3 * len(there), ())
    assert cache.entries() == []
    left = below(cache_directory()) - {storage.TAG}
    assert {name for name in left if not name.endswith(".lock")} <= {ENVIRONMENTS, *FILES} - set(there) | {
        ENVIRONMENTS
    }, "no folder stays behind, but that of the locks of environments"


def test_what_an_entry_says() -> None:
    """Its files with their bytes, when one of them was used last, and the limit; a lock is no content."""
    storage.prepare_cache()
    make("sources/transformers-5.1.0.zip", 10, used=1e9 + 5)
    make("sources/transformers-5.2.0.zip", 20, used=1e9 + 9)
    make("sources/transformers-5.3.0.zip", 30, used=1e9 + 7)
    make(f"{ENVIRONMENT}.lock", 40, used=1.5e9)
    make(f"{LEDGER}.lock", 40)
    assert cache.entries() == [cache.CacheEntry(SOURCES, 3, 60, 1e9 + 9, cache.LIMITS[SOURCES])]
    make(f"{ENVIRONMENT}/a/b.py", 1, used=1e9 + 1)
    make(f"{ENVIRONMENT}/c.py", 2, used=1e9)
    assert cache.entries()[0] == cache.CacheEntry(ENVIRONMENTS, 2, 3, 1e9 + 1, None)


def test_there_need_be_no_cache() -> None:
    assert cache.entries() == []
    assert cache.clear() == Cleared(0, ())
    for name in cache.LIMITS:
        cache.trim(name)
    assert not cache_directory().exists()


RELEASE, OUTCOME_SIZE = 6 * 2**20, 2**10


@pytest.mark.parametrize(("name", "one", "fewest", "most"), [
    (SOURCES, RELEASE, 100, 400),  # all releases that the matrix has, and not more of a disk than that
    (OUTCOMES, OUTCOME_SIZE, 10_000, 200_000),  # a dozen architectures on each of them, of several versions
])  # fmt: skip
def test_how_much_is_kept(name: str, one: int, fewest: int, most: int) -> None:
    assert fewest * one <= cache.LIMITS[name] <= most * one


# ---- what is trimmed


@pytest.mark.parametrize("limit", [0, 99, 100, 101, 199, 200, 250, 299, 300, 301])
@pytest.mark.parametrize("name", [SOURCES, OUTCOMES])
def test_the_longest_unused_go_until_the_rest_fits(name: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders count for nothing: their size is the file system's affair."""
    storage.prepare_cache()
    names = {
        SOURCES: [f"sources/transformers-5.{number}.0.zip" for number in (2, 3, 1)],
        OUTCOMES: [f"outcomes/{folder}/{'c' * 62}.json" for folder in ("ab", "cd", "01")],
    }[name]
    now = time.time()
    for age, file in enumerate(names):
        make(file, 100, used=now - age)
    monkeypatch.setitem(cache.LIMITS, name, limit)
    cache.trim(name)
    kept = min(limit // 100, 3)
    assert below(cache_directory() / name, folders=False) == {file.partition("/")[2] for file in names[:kept]}


@pytest.mark.parametrize("state", ["at work", "abandoned"])
def test_unfinished_files_at_a_full_cache(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is being written is not deleted for want of room; one that is dead takes none from the others."""
    storage.prepare_cache()
    whole = make("sources/transformers-5.3.0.zip", 100)
    unfinished = make("sources/.transformers-5.2.0.zip.abcd_123.tmp", 100)
    old = time.time() - storage.ABANDONED_AFTER
    used = old + 600 if state == "at work" else old - 600
    os.utime(unfinished, (used, used))
    monkeypatch.setitem(cache.LIMITS, SOURCES, 0 if state == "at work" else 100)
    cache.trim(SOURCES)
    assert (whole.exists(), unfinished.exists()) == ((False, True) if state == "at work" else (True, False))


def test_a_finished_environment_stays_however_old_it_is() -> None:
    storage.prepare_cache()
    stay = [f"{ENVIRONMENT}/lib/python.py", f"{ENVIRONMENT}.lock", "environments/mine.building/x.py"]
    go = "environments/5.23.0-ba9876543210.building/x.py"
    for name in (*stay, go):
        make(name)
    for path in (cache_directory() / ENVIRONMENTS).rglob("*"):
        os.utime(path, (1e9, 1e9))
    cache.trim(SOURCES)
    left = below(cache_directory() / ENVIRONMENTS, folders=False)
    assert {f"environments/{name}" for name in left if "5.23.0" not in name} == set(stay)
    assert not (cache_directory() / go).exists()


def test_nothing_is_trimmed_in_a_folder_that_is_not_patchkits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what has a name of patchkit's, is old, and is over the limit."""
    names = {
        "thesis.tex", "sources/transformers-5.2.0.zip", "sources/.transformers-5.2.0.zip.abcd_123.tmp",
        ".ledger.jsonl.abcd_123.tmp", f"{ENVIRONMENT}.building/x.py",
    }  # fmt: skip
    for name in names:
        make(name)
    for path in cache_directory().rglob("*"):
        os.utime(path, (1e9, 1e9))
    monkeypatch.setitem(cache.LIMITS, SOURCES, 0)
    cache.trim(SOURCES)
    assert below(cache_directory(), folders=False) == names


@pytest.mark.parametrize("way", ["a file", "no home"])
def test_a_cache_that_cannot_be_had_is_not_trimmed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "a file":
        cache_directory().write_text("text")
    else:

        def fail(*args, **kwargs):
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv(storage.CACHE_VARIABLE)
        monkeypatch.setattr(storage.platformdirs, "user_cache_dir", fail)
    cache.trim(SOURCES)


def test_a_cache_that_may_only_be_read_is_used_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path):
        raise PermissionError(path)

    cache.touch(cache_directory() / "not there")
    monkeypatch.setattr(os, "utime", fail)
    cache.touch(cache_directory())


# ---- what is cleared


@pytest.mark.parametrize("name", [None, ENVIRONMENTS])
def test_a_lock_stays_and_what_it_guards_goes(name: str | None) -> None:
    """Who waits for a lock that is deleted, and who makes it anew, would both have it."""
    storage.prepare_cache()
    for version in ("5.22.2", "5.22.3"):
        make(f"environments/{version}-0123456789ab/lib/python.py")
        make(f"environments/{version}-0123456789ab.lock", 0)
    make("environments/5.21.0-0123456789ab.building/lib/python.py")
    old = time.time() - 2 * storage.ABANDONED_AFTER
    os.utime(cache_directory() / "environments/5.21.0-0123456789ab.building", (old, old))
    assert cache.clear(name) == Cleared(9, ())
    assert {path.suffix for path in (cache_directory() / ENVIRONMENTS).iterdir()} == {".lock"}
    assert {f"{version}-0123456789ab.lock" for version in ("5.22.2", "5.22.3")} <= below(
        cache_directory() / ENVIRONMENTS
    )


@pytest.mark.parametrize("age", ["at work", "abandoned"])
@pytest.mark.parametrize("unfinished", [
    "sources/.transformers-5.2.0.zip.abcd_123.tmp", "sources/.fetch-abcd_123/wheel.whl",
    f"outcomes/ab/.{'c' * 62}.json.abcd_123.tmp",
])  # fmt: skip
def test_what_is_being_written_stays_and_is_named(unfinished: str, age: str) -> None:
    storage.prepare_cache()
    make("sources/transformers-5.2.0.zip")
    make(OUTCOME)
    make(unfinished)
    (top, part), old = Path(unfinished).parts[:2], time.time() - 2 * storage.ABANDONED_AFTER
    place = cache_directory() / (unfinished if top == OUTCOMES else f"{top}/{part}")
    if age == "abandoned":
        os.utime(place, (old, old))
    assert cache.clear() == (Cleared(6, (place,)) if age == "at work" else Cleared(9, ()))
    assert place.exists() is (age == "at work")
    left = {path.name for path in cache_directory().iterdir()} - {storage.TAG}
    assert left == ({top} if age == "at work" else set())


@pytest.mark.parametrize("lost", [ENVIRONMENTS, LEDGER, OUTCOMES, SOURCES])
def test_another_process_clears_an_entry_first(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All the others are cleared, and what the other process freed is not counted."""
    storage.prepare_cache()
    for name in FILES.values():
        make(name)
    found = cache.entries()
    monkeypatch.setattr(cache, "entries", lambda: found)
    path = cache_directory() / FILES[lost]
    path.unlink()
    with contextlib.suppress(OSError):
        for folder in path.parents:
            folder.rmdir()
    assert cache.clear() == Cleared(9, ())
    assert {name for name in below(cache_directory()) if not name.endswith(".lock")} <= {storage.TAG, ENVIRONMENTS}


@pytest.mark.parametrize("what", ["a release", "a fetch", "an outcome"])
def test_another_process_deletes_a_file_at_this_very_moment(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.prepare_cache()
    gone, stays = {
        "a release": ("sources/transformers-5.3.0.zip", "sources/transformers-5.2.0.zip"),
        "a fetch": ("sources/.fetch-abcd_124/a.whl", "sources/.fetch-abcd_123/a.whl"),
        "an outcome": (f"outcomes/ab/{'d' * 62}.json", OUTCOME),
    }[what]
    for name in (gone, stays):
        make(name)
    for path in cache_directory().rglob("*"):
        if path.name != storage.TAG:
            os.utime(path, (1e9, 1e9))
    real = cache._size

    def size(path: Path) -> int:
        found = real(path)
        if path in (cache_directory() / gone, (cache_directory() / gone).parent):
            (cache_directory() / gone).unlink(missing_ok=True)
            if what == "a fetch":
                path.rmdir()
        return found

    monkeypatch.setattr(cache, "_size", size)
    cache.clear()
    assert {path.name for path in cache_directory().iterdir()} == {storage.TAG}


def test_the_ledger_is_deleted_under_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that adds a proof at the time would lose it, or bring the deleted ones back."""
    storage.prepare_cache()
    ledger = make(LEDGER)
    held = []

    @contextlib.contextmanager
    def locked(path):
        held.append((path, ledger.exists()))
        yield
        held.append((path, ledger.exists()))

    monkeypatch.setattr(cache, "locked", locked)
    assert cache.clear(LEDGER) == Cleared(3, ())
    assert held == [(ledger, True), (ledger, False)]


def test_the_lock_of_an_environment_is_given_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Lock(filelock.FileLock):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    storage.prepare_cache()
    make(f"{ENVIRONMENT}/lib/python.py")
    monkeypatch.setattr(filelock, "FileLock", Lock)
    cache.clear(ENVIRONMENTS)
    assert [(Path(lock.lock_file), lock.is_locked) for lock in made] == [
        (cache_directory() / f"{ENVIRONMENT}.lock", False)
    ]
