"""Which releases are meant by what is asked for, in which order they come, and what is fetched: the index is made by hand."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from packaging.version import Version
from synthetic_releases import LLAMA, SMALL_LLAMA, folder_release, make_wheel

from patchkit.errors import ReleaseError, WheelError
from patchkit.processes.children import is_stopping
from patchkit.upstream import releases
from patchkit.upstream.kept_releases import CHECKED
from patchkit.upstream.release import INSTALLED, WHEEL, Release
from patchkit.upstream.releases import release_at, resolve

KNOWN = ["4.47.0", "4.90.0", "4.91.0", "5.0.0", "5.1.0"]
HERE = "5.0.0"


class Index:
    """An index with some releases, of which one is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched, self.asked, self.note = folder, [], [], f"{CHECKED} an index"  # type: ignore[var-annotated]

    def list_versions(self, wheels: Path | None = None, package: str = "transformers") -> list[Version]:
        self.asked.append(wheels)
        return [Version(version) for version in KNOWN]

    def fetch(self, version: str, wheels: Path | None = None, package: str = "transformers") -> Release:
        self.fetched.append((version, wheels))
        return Release(version, self.folder / f"{version}.zip", WHEEL, self.note)

    def installed(self, package: str) -> Release:
        return Release(HERE, self.folder, INSTALLED)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    found = Index(tmp_path)
    monkeypatch.setattr(releases, "list_versions", found.list_versions)
    monkeypatch.setattr(releases, "fetch", found.fetch)
    monkeypatch.setattr(releases, "installed_release", found.installed)
    return found


ASKED: dict[tuple[str, ...], tuple[list[str], list[str]]] = {
    # what is asked for: the releases, and those that are fetched
    (): ([], []),
    ("installed",): ([HERE], []),
    ("latest",): (["5.1.0"], ["5.1.0"]),
    ("4.90.0",): (["4.90.0"], ["4.90.0"]),
    ("v4.90",): (["4.90"], ["4.90"]),
    ("5.0.0",): ([HERE], []),
    ("5.0",): ([HERE], []),
    ("9.9.9",): (["9.9.9"], ["9.9.9"]),
    ("5.2.0rc1",): (["5.2.0rc1"], ["5.2.0rc1"]),
    (">=4.91",): (["4.91.0", "5.0.0", "5.1.0"], ["4.91.0", "5.1.0"]),
    ("<4.91,>4.47",): (["4.90.0"], ["4.90.0"]),
    ("==5.*",): (["5.0.0", "5.1.0"], ["5.1.0"]),
    ("5.1.0", "4.90.0", "5.1.0"): (["4.90.0", "5.1.0"], ["4.90.0", "5.1.0"]),
    ("5.1.0", "latest", "installed", "5.0.0"): (["5.0.0", "5.1.0"], ["5.1.0"]),
}


@pytest.mark.parametrize("wheels", [None, Path("some")], ids=str)
@pytest.mark.parametrize("specs", ASKED, ids=" ".join)
def test_what_is_asked_for(specs: tuple[str, ...], wheels: Path | None, index: Index) -> None:
    """Each once, oldest first; what is installed is not fetched."""
    expected, fetched = ASKED[specs]
    told: list[tuple[int, int]] = []
    found = resolve(specs, wheels=wheels, progress=lambda done, of: told.append((done, of)))
    assert [release.version for release in found] == expected
    assert sorted(index.fetched) == [(version, wheels) for version in sorted(fetched)]
    assert set(index.asked) <= {wheels}
    assert all(release.is_installed == (release.version == HERE) for release in found)
    assert told[0] == (0, len(fetched))
    assert len(told) == len(fetched) + 1
    assert {of for _, of in told} == {len(fetched)}


def test_the_wheel_of_what_is_installed(index: Index) -> None:
    """An installed file can have been edited."""
    assert [one.origin for one in resolve([HERE], from_wheels=True)] == [WHEEL]
    assert [one.origin for one in resolve([HERE])] == [INSTALLED]
    assert [one.origin for one in resolve([INSTALLED, HERE], from_wheels=True)] == [INSTALLED]


def test_where_transformers_is_not_installed(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(releases, "installed_release", lambda: pytest.fail("there is none"))
    assert [one.origin for one in resolve([HERE])] == [WHEEL]


@pytest.mark.parametrize(("spec", "said"), [
    ("new", r"^'new' is not a release, a range such as '>=5\.20', 'latest', 'installed', or a path \(with a separator: \./new\)"),
    (">=", "is not a release"), ("", "is not a release"), (">=6", r"no release of transformers is >=6; the newest is 5\.1\.0"),
])  # fmt: skip
def test_what_names_no_release(spec: str, said: str, index: Index) -> None:
    if spec == "":  # an empty range is every release
        assert [one.version for one in resolve([spec])] == KNOWN
        return
    with pytest.raises(ReleaseError, match=said):
        resolve([spec])
    assert index.fetched == []


def test_several_are_fetched_at_a_time(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four, and no more."""
    together, most, lock = 0, 0, threading.Lock()
    four = threading.Barrier(4, timeout=30)

    def fetch(version: str, wheels: Path | None, package: str) -> Release:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        four.wait()
        with lock:
            together -= 1
        four.wait()
        return index.fetch(version, wheels, package)

    monkeypatch.setattr(releases, "fetch", fetch)
    found = resolve([f"4.{number}.0" for number in range(60, 68)])
    assert (len(found), most) == (8, 4)


def test_one_that_cannot_be_fetched_is_the_error_of_all(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(version: str, wheels: Path | None, package: str) -> Release:
        if version == "4.91.0":
            raise ReleaseError("it is not there")
        return index.fetch(version, wheels, package)

    monkeypatch.setattr(releases, "fetch", fetch)
    with pytest.raises(ReleaseError, match="it is not there"):
        resolve(["4.90.0", "4.91.0"])


HASHES = {
    # folder or archive, note, origin: what is said, or nothing
    "checked": (False, f"{CHECKED} an index", WHEEL, None),
    "not checked": (False, "SHA-256 0 not checked: no index", WHEEL, "but SHA-256 0 not checked: no index"),
    "checked, not at the beginning": (False, f"not {CHECKED}", WHEEL, f"but not {CHECKED}"),
    "a file": (False, "", "some.whl", "but some.whl was given as a file; name its release to have it checked"),
    "a folder": (True, "", "some", None),
    "a folder that says so": (True, "not checked", INSTALLED, None),
}


@pytest.mark.parametrize("case", HASHES)
def test_a_hash_that_is_required(case: str, index: Index, tmp_path: Path) -> None:
    folder, note, origin, said = HASHES[case]
    release = Release("4.90.0", tmp_path if folder else tmp_path / "some.zip", origin, note)
    if said is None:
        releases._require_hash(release)
    else:
        with pytest.raises(WheelError, match=r"^transformers 4\.90\.0: the hash of its wheel is required, ") as error:
            releases._require_hash(release)
        assert str(error.value).endswith(said)


@pytest.mark.parametrize("bad", range(3))
def test_hashes_are_required_of_each(bad: int, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = ["4.90.0", "4.91.0", "5.1.0"]

    def fetch(version: str, wheels: Path | None, package: str) -> Release:
        release = index.fetch(version, wheels, package)
        return Release(version, release.location, WHEEL, "not checked") if version == versions[bad] else release

    monkeypatch.setattr(releases, "fetch", fetch)
    assert len(resolve(versions)) == 3
    with pytest.raises(WheelError, match=f"transformers {versions[bad]}: "):
        resolve(versions, require_hashes=True)


# ---- what lies on disk


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder_release(tmp_path / "plain", "5.1.0", {LLAMA: SMALL_LLAMA})
    folder_release(tmp_path / "checkout" / "src", "5.2.0", {LLAMA: SMALL_LLAMA})
    folder_release(tmp_path / "both", "5.3.0", {LLAMA: SMALL_LLAMA})
    folder_release(tmp_path / "both" / "src", "5.4.0", {LLAMA: SMALL_LLAMA})
    folder_release(tmp_path / INSTALLED, "5.5.0", {LLAMA: SMALL_LLAMA})
    folder_release(tmp_path / WHEEL, "5.6.0", {LLAMA: SMALL_LLAMA})
    (tmp_path / "plain" / "other").mkdir()
    (tmp_path / "models_only" / "transformers").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.whl").mkdir()
    make_wheel(tmp_path / "wheels", "4.90.0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PLACES = {
    # path: version, folder that is read, origin
    "plain": ("5.1.0", "plain", "plain"),
    "plain/transformers": ("5.1.0", "plain", "plain/transformers"),
    "checkout": ("5.2.0", "checkout/src", "checkout"),
    "checkout/src": ("5.2.0", "checkout/src", "checkout/src"),
    "checkout/src/transformers": ("5.2.0", "checkout/src", "checkout/src/transformers"),
    "both": ("5.4.0", "both/src", "both"),
    INSTALLED: ("5.5.0", INSTALLED, f"./{INSTALLED}"),
    WHEEL: ("5.6.0", WHEEL, f"./{WHEEL}"),
}


@pytest.mark.parametrize("path", PLACES)
def test_a_release_on_disk(path: str, places: Path) -> None:
    version, folder, origin = PLACES[path]
    found = release_at(Path(path))
    assert (found.version, found.location, found.origin) == (version, places / folder, origin)
    assert (found.hash_note, found.is_installed, found.package) == ("", False, "transformers")


def test_a_wheel_on_disk(places: Path) -> None:
    (wheel,) = (places / "wheels").iterdir()
    found = release_at(wheel)
    assert (found.version, found.origin, found.hash_note) == ("4.90.0", str(wheel), "")
    assert [one.origin for one in resolve([str(wheel)])] == [str(wheel)]
    for relative in (f"wheels/{wheel.name}", f".\\{wheel.name}"):
        if "\\" in relative:
            with pytest.raises(ReleaseError, match="does not exist"):
                resolve([relative])
        else:
            assert resolve([relative])[0].origin == relative


@pytest.mark.parametrize(("path", "said"), [
    ("plain/other", "has no transformers/models"), ("plain/transformers/models", "has no transformers/models"),
    ("models_only", "has no transformers/models"), ("file.txt", "is no wheel"), ("folder.whl", "has no transformers/models"),
    ("nowhere", "does not exist"), ("nowhere.whl", "does not exist"),
])  # fmt: skip
def test_nothing_of_the_kind(path: str, said: str, places: Path) -> None:
    with pytest.raises(ReleaseError, match=f"^{path} {said}; expected a wheel, or a checkout with src/transformers$"):
        release_at(Path(path))


@pytest.mark.parametrize("spec", [".", "..", "./plain", "plain/", "wheels.whl"])
def test_what_is_a_path(spec: str, places: Path, index: Index) -> None:
    """With a separator, or the end of a wheel's name: whatever else it may be called."""
    if spec in ("./plain", "plain/"):
        assert [one.version for one in resolve([spec])] == ["5.1.0"]
    else:
        with pytest.raises(ReleaseError, match="expected a wheel, or a checkout"):
            resolve([spec])
    assert index.fetched == []


def test_where_one_cannot_be_fetched_no_other_is_begun(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for its turn is left; what runs is ended."""
    begun: list[str] = []

    def fetch(version: str, wheels: Path | None, package: str) -> Release:
        begun.append(version)
        if len(begun) > 1:
            while not is_stopping():
                time.sleep(0.01)
        raise ReleaseError(f"{version} is gone")

    monkeypatch.setattr(releases, "fetch", fetch)
    monkeypatch.setattr(releases, "_FETCHES", 1)
    with pytest.raises(ReleaseError, match=r"4\.1 is gone"):
        resolve([f"4.{minor}" for minor in range(1, 9)])
    assert len(begun) <= 2
    assert not is_stopping()
