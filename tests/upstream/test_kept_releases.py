"""What the cache keeps of a release: any damage is found and mended, and a hash that was missing is checked later."""

from __future__ import annotations

import json
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_releases import LLAMA, SMALL_LLAMA, make_index, make_wheel
from typer.testing import CliRunner

from patchkit.arch.registry import find
from patchkit.cache.storage import cache_directory
from patchkit.check.static.findings import findings_of
from patchkit.cli.main import app
from patchkit.errors import ReleaseError, WheelError
from patchkit.processes import children
from patchkit.upstream import index, kept_releases, releases
from patchkit.upstream.kept_releases import fetch
from patchkit.upstream.release import archive_of
from patchkit.upstream.releases import release_at, resolve

UseIndex = Callable[[str], None]
FLIPS = 400


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_releases, "published", lambda *_: index.Published(frozenset(), "there is no index"))


def kept_from_before(place: Path, version: str = "4.90.0", **about: object) -> None:
    """An archive as it was written before archives had a digest."""
    described = {"version": version, "origin": "wheel", "hash_note": "", "requires_python": "", "sha256": "0" * 64}
    place.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("patchkit.json", json.dumps(described | about))
        archive.writestr(LLAMA, SMALL_LLAMA)


@pytest.mark.usefixtures("no_index")
@pytest.mark.parametrize("sealed", [True, False], ids=["with a digest", "from before"])
def test_every_flipped_byte_is_found_and_mended(tmp_path: Path, sealed: bool) -> None:
    """Bytes at random places are changed at random, one at a time, by a fixed seed; every one is fetched anew."""
    wheel_folder = make_wheel(tmp_path / "wheels").parent
    place = fetch("4.90.0", wheel_folder).location
    if not sealed:
        kept_from_before(place)
    whole, chance = place.read_bytes(), random.Random(20)
    survived = 0
    for position in (chance.randrange(len(whole)) for _ in range(FLIPS)):
        damaged = bytearray(whole)
        damaged[position] ^= chance.randrange(1, 256)
        place.write_bytes(damaged)
        archive_of.cache_clear()
        release = fetch("4.90.0", wheel_folder)
        assert (release.version, release.read(LLAMA), release.model_files()) == ("4.90.0", SMALL_LLAMA, [LLAMA])
        survived += place.read_bytes() == damaged
    if sealed:
        assert survived == 0, "each was written anew"
    else:
        assert survived < FLIPS / 4, "dates and the like change nothing that is read"


@pytest.mark.usefixtures("no_index")
@pytest.mark.parametrize("content", [b"", b"PK", b"PK\5\6" + bytes(18), b"<html>", bytes(10_000)])
def test_what_is_no_archive_is_fetched_anew(tmp_path: Path, content: bytes) -> None:
    wheel_folder = make_wheel(tmp_path / "wheels").parent
    place = fetch("4.90.0", wheel_folder).location
    place.write_bytes(content)
    archive_of.cache_clear()
    assert fetch("4.90.0", wheel_folder).read(LLAMA) == SMALL_LLAMA


@pytest.mark.usefixtures("no_index")
@pytest.mark.parametrize("about", [{"version": 5}, {"hash_note": None}, {"requires_python": ["x"]}, {"sha256": {}}])
def test_what_says_something_else_about_itself_is_fetched_anew(tmp_path: Path, about: dict[str, object]) -> None:
    wheel_folder = make_wheel(tmp_path / "wheels").parent
    kept_from_before(cache_directory() / "sources" / "transformers-4.90.0.zip", **about)
    assert fetch("4.90.0", wheel_folder).requires_python == ">=3.9"


@pytest.mark.usefixtures("no_index")
def test_damage_after_it_was_found_is_an_error_that_says_which_release(tmp_path: Path) -> None:
    """As a process of a sweep meets it, which opens the archive again."""
    release = fetch("4.90.0", make_wheel(tmp_path / "wheels").parent)
    damaged = bytearray(release.location.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    release.location.write_bytes(damaged)
    archive_of.cache_clear()
    for ask in (lambda: findings_of(release, find("llama")), release.model_files):
        with pytest.raises(ReleaseError, match=r"transformers 4\.90\.0.*archive is damaged"):
            ask()


def test_a_release_from_before_archives_had_a_digest_needs_no_index(use_index: UseIndex) -> None:
    use_index("http://127.0.0.1:9")
    kept_from_before(cache_directory() / "sources" / "transformers-4.90.0.zip", hash_note="SHA-256 checked against x")
    release = fetch("4.90.0")
    assert (release.read(LLAMA), release.hash_note) == (SMALL_LLAMA, "SHA-256 checked against x")


def test_a_wheel_that_lies_elsewhere_now(tmp_path: Path) -> None:
    """The environment is made from the path: that of an earlier run may be gone."""
    release_at(make_wheel(tmp_path / "first"))
    assert release_at(make_wheel(tmp_path / "second")).origin == str(next((tmp_path / "second").iterdir()))


class TestHashThatWasNotChecked:
    """A wheel was fetched from an index without hashes; later the index has them."""

    @pytest.fixture
    def unchecked(self, tmp_path: Path, use_index: UseIndex) -> Path:
        wheel = make_wheel(tmp_path / "wheels")
        use_index(make_index(tmp_path / "index", wheel, digests=False))
        assert "not checked" in fetch("4.90.0").hash_note
        index._links.cache_clear()
        index._settings.cache_clear()
        return wheel

    def test_it_is_checked_later_and_then_never_again(
        self, unchecked: Path, tmp_path: Path, use_index: UseIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = make_index(tmp_path / "later", unchecked)
        use_index(address)
        release = fetch("4.90.0")
        assert release.hash_note == f"SHA-256 checked against {address}/transformers/"
        assert release.read(LLAMA) == SMALL_LLAMA
        asked: list[str] = []
        monkeypatch.setattr(kept_releases, "published", asked.append)
        assert fetch("4.90.0") == release
        assert asked == []

    def test_another_hash_is_an_error_and_nothing_stays(
        self, unchecked: Path, tmp_path: Path, use_index: UseIndex
    ) -> None:
        use_index(make_index(tmp_path / "later", unchecked, wrong=True))
        with pytest.raises(WheelError, match=r"has the SHA-256 \w{64}, but .*/transformers/ says 0{64}"):
            fetch("4.90.0")
        assert not list((cache_directory() / "sources").glob("*.zip"))

    @pytest.mark.usefixtures("unchecked")
    def test_as_long_as_there_is_none_the_reason_is_that_of_today(self, use_index: UseIndex) -> None:
        use_index("http://127.0.0.1:9")
        assert "127.0.0.1:9/transformers/ cannot be read" in fetch("4.90.0").hash_note

    def test_it_can_be_required(
        self, unchecked: Path, tmp_path: Path, use_index: UseIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        commands = [
            ["check", "-a", "llama", "--static", "-t", "4.90.0"],
            ["matrix", "-t", "4.90.0", "-o", "m.md", "--records", "r.jsonl"],
            ["watch", "--static", "--since", "4.89", "--wheels", str(unchecked.parent)],
        ]
        for command in commands:
            result = CliRunner().invoke(app, [*command, "--require-hashes"])
            assert (result.exit_code, result.stdout.partition("\n")[0] in ("", "new: 4.90.0")) == (2, True), result
            assert "4.90.0: the hash of its wheel is required, but SHA-256" in result.stderr
        assert not Path("m.md").exists()
        index._links.cache_clear()
        index._settings.cache_clear()
        use_index(make_index(tmp_path / "later", unchecked))
        assert [release.version for release in resolve(["4.90.0"], require_hashes=True)] == ["4.90.0"]

    def test_a_file_has_none_and_what_is_installed_needs_none(self, unchecked: Path) -> None:
        with pytest.raises(WheelError, match="was given as a file; name its release"):
            resolve([str(unchecked)], require_hashes=True)
        assert resolve(["installed"], require_hashes=True)[0].is_installed


def test_a_folder_of_pre_releases_has_no_latest(tmp_path: Path) -> None:
    make_wheel(tmp_path, "5.0.0rc1")
    for spec in ("latest", ">=4"):
        with pytest.raises(ReleaseError, match="has pre-releases of transformers only"):
            resolve([spec], wheels=tmp_path)


def test_all_of_fetching_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is under way then is stopped, not waited for."""
    stopped = []

    def endless(version: str, wheels: Path | None, package: str) -> None:
        while not children.is_stopping():
            time.sleep(0.01)
        stopped.append(version)
        raise ReleaseError("it was stopped")

    monkeypatch.setattr(releases, "fetch", endless)
    monkeypatch.setattr(releases, "FETCH_SECONDS", 0.2)
    with pytest.raises(ReleaseError, match=r"not fetched within 0 s: transformers 4\.90\.0, 4\.91\.0"):
        resolve(["4.90.0", "4.91.0"])
    assert sorted(stopped) == ["4.90.0", "4.91.0"]
    assert not children.is_stopping()
