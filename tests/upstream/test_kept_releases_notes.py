"""What is written about a release that is kept, what its hash was held against, and what is named where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version
from synthetic_releases import LLAMA, SMALL_LLAMA, make_wheel

from patchkit.cache.storage import FETCHING, SOURCES, cache_directory
from patchkit.errors import CacheError, ReleaseError, WheelError
from patchkit.upstream import kept_releases
from patchkit.upstream.index import Published
from patchkit.upstream.kept_releases import CHECKED, fetch, of_wheel
from patchkit.upstream.release import WHEEL, archive_of
from patchkit.upstream.wheels import read_wheel, wheel_digest

Publishes = Callable[..., None]


@pytest.fixture
def publishes(monkeypatch: pytest.MonkeyPatch) -> Publishes:
    """Makes the index publish these hashes for every file."""

    def says(*hashes: str, where: str = "the index") -> None:
        monkeypatch.setattr(kept_releases, "published", lambda filename, package: Published(frozenset(hashes), where))

    says(where="there is none")
    return says


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "wheels", "4.90.0")


A, B = "a" * 64, "b" * 64
NOTES = {
    # published, that of the wheel: the note, or how the error ends
    ((), A): (f"SHA-256 {A} not checked: the index", None),
    ((A,), A): (f"{CHECKED} the index", None),
    ((A, B), B): (f"{CHECKED} the index", None),
    ((A,), B): (None, f"but the index says {A}"),
    ((B, A), "c" * 64): (None, f"the index says {A} or {B}"),
}


@pytest.mark.parametrize(("hashes", "own"), NOTES)
def test_the_note_on_a_hash(hashes: tuple[str, ...], own: str, publishes: Publishes) -> None:
    note, error = NOTES[hashes, own]
    publishes(*hashes)
    if error is None:
        assert kept_releases._hash_note("some.whl", own, "transformers") == note
    else:
        with pytest.raises(WheelError, match=f"^some.whl has the SHA-256 {own}, .*{error}$"):
            kept_releases._hash_note("some.whl", own, "transformers")


def about(place: Path) -> dict[str, str]:
    archive_of.cache_clear()
    found: dict[str, str] = json.loads(archive_of(place).read("patchkit.json"))
    return found


@pytest.mark.parametrize("checked", [True, False])
def test_what_is_written_about_a_release(checked: bool, wheel: Path, publishes: Publishes) -> None:
    """And read again; what a process that was killed could leave is gone."""
    digest = wheel_digest(wheel)
    publishes(*([digest] if checked else []))
    release = fetch("4.90", wheel.parent)
    note = f"{CHECKED} the index" if checked else f"SHA-256 {digest} not checked: the index"
    assert (release.version, release.origin, release.hash_note, release.requires_python) == (
        "4.90.0",
        WHEEL,
        note,
        ">=3.9",
    )
    assert release.location == cache_directory() / SOURCES / "transformers-4.90.zip"
    assert about(release.location) == {
        "version": "4.90.0", "origin": WHEEL, "filename": wheel.name, "hash_note": note, "requires_python": ">=3.9", "sha256": digest,
    }  # fmt: skip
    assert fetch("4.90", wheel.parent) == release
    assert not list(release.location.parent.glob(f"{FETCHING}*"))
    assert release.read(LLAMA) == SMALL_LLAMA


def test_a_wheel_is_kept_by_what_it_holds(wheel: Path, tmp_path: Path) -> None:
    digest = wheel_digest(wheel)
    release = of_wheel(wheel)
    assert release.location == cache_directory() / SOURCES / f"transformers-file-{digest[:32]}.zip"
    assert (release.origin, release.hash_note, release.version) == (str(wheel), "", "4.90.0")
    assert about(release.location)["sha256"] == digest
    assert of_wheel(wheel) == release
    other = make_wheel(tmp_path / "other", "4.90.0", {LLAMA: "x = 1"})
    assert of_wheel(other).location != release.location


def test_a_wheel_of_another_release(
    wheel: Path, tmp_path: Path, publishes: Publishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name says one, and its metadata another."""
    monkeypatch.setattr(kept_releases, "download_wheel", lambda version, folder, wheels, package: wheel)
    with pytest.raises(
        WheelError, match=r"4\.90\.0-py3-none-any\.whl says that it is transformers 4\.90\.0, not 4\.91\.0"
    ):
        fetch("4.91.0")
    assert not list((cache_directory() / SOURCES).glob("*.zip"))


def test_what_was_unchecked_is_checked_by_its_own_name(
    wheel: Path, publishes: Publishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One from before names were kept is asked for by the usual one."""
    place = fetch("4.90.0", wheel.parent).location
    digest = wheel_digest(wheel)
    asked: list[str] = []
    monkeypatch.setattr(
        kept_releases, "published", lambda name, package: asked.append(name) or Published(frozenset(), "still none")
    )
    assert fetch("4.90.0").hash_note == f"SHA-256 {digest} not checked: still none"
    assert "there is none" in about(place)["hash_note"], "nothing new is known"
    known = read_wheel(wheel)
    for filename in ("transformers-4.90.0-1-py3-none-any.whl", ""):
        kept_releases._keep(place, known, "not checked", WHEEL, filename, "transformers")
        assert "still none" in fetch("4.90.0").hash_note
    usual = "transformers-4.90.0-py3-none-any.whl"
    assert asked == [wheel.name, "transformers-4.90.0-1-py3-none-any.whl", usual]
    publishes(digest)
    release = fetch("4.90.0")
    assert release.hash_note == about(place)["hash_note"] == f"{CHECKED} the index"
    assert (about(place)["sha256"], about(place)["filename"], about(place)["origin"]) == (digest, usual, WHEEL)
    assert (release.read(LLAMA), release.requires_python) == (SMALL_LLAMA, ">=3.9")


def test_what_is_checked_in_a_cache_that_may_only_be_read(
    wheel: Path, publishes: Publishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fetch("4.90.0", wheel.parent).location
    publishes(wheel_digest(wheel))

    def fail(*_: object) -> None:
        raise CacheError("read only")

    monkeypatch.setattr(kept_releases, "write_whole", fail)
    assert fetch("4.90.0").hash_note == f"{CHECKED} the index"
    assert "not checked" in about(place)["hash_note"]


KNOWN = ["4.88.0", "4.89.0", "4.90.0", "5.1.0", "5.2.0", "5.3.0"]
NEAR = {
    "4.0": "4.88.0, 4.89.0", "4.88.5": "4.88.0, 4.89.0, 4.90.0", "4.95.0": "4.89.0, 4.90.0, 5.1.0, 5.2.0", "5.2.5": "5.1.0, 5.2.0, 5.3.0",
    "6.0": "5.2.0, 5.3.0",
}  # fmt: skip


@pytest.mark.parametrize("version", NEAR)
def test_what_is_near_a_release_that_there_is_not(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_releases, "list_versions", lambda wheels, package: list(map(Version, KNOWN)))
    told = kept_releases._with_near_misses(version, ReleaseError("pip failed"), None, "transformers")
    assert str(told) == f"there is no transformers {version}; near it: {NEAR[version]}"


@pytest.mark.parametrize("known", [True, False])
def test_another_failure_stays_what_it_is(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a release that there is, or where nobody can tell."""

    def listed(wheels: Path | None, package: str) -> list[Version]:
        if not known:
            raise ReleaseError("no network")
        return list(map(Version, KNOWN))

    monkeypatch.setattr(kept_releases, "list_versions", listed)
    error = ReleaseError("pip failed")
    assert kept_releases._with_near_misses("4.90", error, None, "transformers") is error


def test_the_folder_for_what_is_fetched(tmp_path: Path) -> None:
    """Private, and gone afterwards, also after an error; a place that cannot be written to is a cache error."""
    seen = []

    def fail() -> None:
        with kept_releases._fetching_folder(tmp_path / "sources") as folder:
            seen.append((folder.parent.name, folder.name.startswith(FETCHING), folder.parent.stat().st_mode & 0o777))
            (folder / "half.whl").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [("sources", True, 0o700)]
    assert list((tmp_path / "sources").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be written to: "), kept_releases._fetching_folder(tmp_path / "file"):
        pass
