"""Which environments are kept: the limit on both sides, those in use, that which was just made; and what is removed of one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from patchkit.check.numeric import environments
from patchkit.check.numeric.environments import environments_directory

HOUR = 3600.0
NOW = 2e9


def make(name: str, used: float) -> Path:
    place = environments_directory() / name
    (place / "lib").mkdir(parents=True)
    (place / "lib" / "file").touch()
    (place / environments._ABOUT).write_text("{}")
    os.utime(place / environments._ABOUT, (used, used))
    return place


@pytest.fixture(autouse=True)
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "LIMIT", 2)
    monkeypatch.setattr(environments, "_IN_USE_SECONDS", HOUR)
    monkeypatch.setattr(time, "time", lambda: NOW)


AGES = {
    # hours since each was used: those that stay
    (): (),
    (9,): (9,),
    (9, 8): (9, 8),
    (9, 8, 7): (8, 7),
    (7, 9, 8): (7, 8),
    (7, 8, 9, 6): (7, 6),
    (9, 8, 0.5, 0.2): (0.5, 0.2),
    (9, 0.9, 0.5, 0.2): (0.9, 0.5, 0.2),
    (1, 0.5, 0.2): (1, 0.5, 0.2),
    (1.01, 0.5, 0.2): (0.5, 0.2),
    (0.9, 0.5, 0.2): (0.9, 0.5, 0.2),
}


@pytest.mark.parametrize("ages", AGES, ids=str)
def test_the_longest_unused_go_but_none_in_use(ages: tuple[float, ...]) -> None:
    """By the time of their use, and not by name."""
    places = {age: make(f"5.{number}.0", NOW - age * HOUR) for number, age in enumerate(ages)}
    environments._trim(environments_directory() / "none of them")
    assert {age for age, place in places.items() if place.exists()} == set(AGES[ages])


def test_the_one_that_was_just_made_stays() -> None:
    places = [make(f"5.{age}.0", NOW - age * HOUR) for age in (9, 8, 7, 6)]
    environments._trim(places[0])
    assert [place.exists() for place in places] == [True, False, True, True]


@pytest.mark.parametrize("when", range(4))
def test_one_that_another_process_deletes_hides_no_other(when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever in the list it comes."""
    places = [make(f"5.{age}.0", NOW - age * HOUR) for age in (9, 8, 7)]
    found = [place / environments._ABOUT for place in places]
    found.insert(when, environments_directory() / "5.6.0" / environments._ABOUT)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter(found))
    environments._trim(environments_directory())
    assert [place.exists() for place in places] == [False, True, True]


@pytest.mark.parametrize("there", ["all of it", "half of it", "nothing"])
def test_what_is_removed_of_one(there: str) -> None:
    """First what says that it is whole, and no error where another process was quicker."""
    place = make("5.1.0", NOW)
    other = make("5.2.0", NOW)
    if there != "all of it":
        (place / environments._ABOUT).unlink()
    if there == "nothing":
        (place / "lib" / "file").unlink()
        (place / "lib").rmdir()
        place.rmdir()
    environments._remove(place, other)
    assert not place.exists()
    assert not other.exists()
