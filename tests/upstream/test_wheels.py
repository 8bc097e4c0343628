"""Wheels that are damaged, unsafe or not what they seem: each a typed error in one line, and nothing kept."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from synthetic_releases import LLAMA, SMALL_LLAMA, make_index, make_wheel

from patchkit.cache.storage import cache_directory
from patchkit.errors import CacheError, PatchkitError, ReleaseError, WheelError
from patchkit.upstream import wheels, zip_members
from patchkit.upstream.kept_releases import fetch
from patchkit.upstream.releases import release_at, resolve
from patchkit.upstream.wheels import is_model_file, read_wheel


def with_member(wheel: Path, member: zipfile.ZipInfo | str, text: str = "") -> Path:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(member, text)
    return wheel


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def nothing_is_kept() -> bool:
    """Of a release; that the folder is a cache, and what an index said, may be."""
    return not list((cache_directory() / "sources").glob("*"))


def test_only_model_files_are_kept(tmp_path: Path) -> None:
    files = {
        LLAMA: SMALL_LLAMA,
        "transformers/models/llama/modeling_tf_llama.py": "raise SystemExit",
        "transformers/models/llama/configuration_llama.py": "raise SystemExit",
        "transformers/trainer.py": "raise SystemExit",
        "transformers/models/deep/er/modeling_deeper.py": "",
    }
    wheel = read_wheel(make_wheel(tmp_path, files=files))
    assert set(wheel.files) == {LLAMA, "transformers/models/deep/er/modeling_deeper.py"}
    assert (wheel.version, wheel.requires_python) == ("4.90.0", ">=3.9")
    assert not is_model_file("transformers/models/llama/modeling_flax_llama.py")


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("../../outside.py", "leads out of the archive"),
        ("transformers/models/../../../outside.py", "leads out of the archive"),
        ("/etc/outside.py", "is an absolute path"),
        ("C:/outside.py", "is an absolute path"),
        ("transformers\\models\\outside.py", "has a backslash"),
        (link("transformers/models/llama/modeling_link.py"), "is a symbolic link"),
        (LLAMA, "is there twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unsafe_member(tmp_path: Path, member: zipfile.ZipInfo | str, said: str) -> None:
    wheel = with_member(make_wheel(tmp_path / "wheels"), member, "text")
    with pytest.raises(WheelError, match="is not safe to unpack") as error:
        release_at(wheel)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert nothing_is_kept()


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, files={LLAMA: SMALL_LLAMA * 20})
    for module, limit, said in (
        (zip_members, "MAX_MEMBERS", "holds 4 files"),
        (zip_members, "MAX_TOTAL", "would unpack to"),
        (zip_members, "RATIO_FROM", "or 2 times its size"),
        (wheels, "MAX_FILE", "would unpack to"),
        (wheels, "MAX_WHEEL", "is larger than"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(zip_members, "MAX_RATIO", 2)
            patch.setattr(module, limit, 2)
            with pytest.raises(WheelError, match=said):
                read_wheel(wheel)


def test_a_member_larger_than_its_header_says_is_not_read_on(tmp_path: Path) -> None:
    """A zip bomb that lies: the size in its directory is small."""
    wheel = make_wheel(tmp_path, files={LLAMA: "x = 1\n" * 100_000})
    data = wheel.read_bytes()
    size = (600_000).to_bytes(4, "little")
    assert data.count(size) == 2
    wheel.write_bytes(data.replace(size, (60).to_bytes(4, "little")))
    with pytest.raises(WheelError, match="damaged"):
        read_wheel(wheel)


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
def test_truncated(tmp_path: Path, cut: int) -> None:
    wheel = make_wheel(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:cut])
    with pytest.raises(WheelError, match="damaged or cut short"):
        release_at(wheel)
    assert nothing_is_kept()


def test_a_flipped_bit(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    data = bytearray(wheel.read_bytes())
    data[60 + len(LLAMA)] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(WheelError, match="damaged"):
        read_wheel(wheel)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "other"}, "is a wheel of other, not of transformers"),
        ({"files": {"transformers/__init__.py": ""}}, "holds no transformers/models"),
        ({"version": "new"}, "has no valid version: 'new'"),
    ],
)
def test_not_what_was_asked_for(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(WheelError, match=said):
        read_wheel(make_wheel(tmp_path, **options))


def test_the_hash_of_the_index_is_checked(tmp_path: Path, use_index) -> None:
    wheel = make_wheel(tmp_path / "wheels")
    address = make_index(tmp_path / "index", wheel)
    use_index(address)
    release = fetch("4.90.0")
    assert release.hash_note == f"SHA-256 checked against {address}/transformers/"
    assert release.read(LLAMA) == SMALL_LLAMA


def test_another_hash_than_the_index_says(tmp_path: Path, use_index) -> None:
    use_index(make_index(tmp_path / "index", make_wheel(tmp_path / "wheels"), wrong=True))
    with pytest.raises(PatchkitError, match=r"(?i)hash|SHA-256"):
        fetch("4.90.0")
    assert nothing_is_kept()


def test_our_own_check_of_the_hash(tmp_path: Path, use_index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pip's: what it hands over is another file."""
    from patchkit.upstream import kept_releases

    use_index(make_index(tmp_path / "index", make_wheel(tmp_path / "wheels")))
    other = make_wheel(tmp_path / "other", files={LLAMA: "x = 1"})
    monkeypatch.setattr(kept_releases, "download_wheel", lambda *_: other)
    with pytest.raises(WheelError, match=r"has the SHA-256 \w{64}, but file://.*/transformers/ says \w{64}"):
        fetch("4.90.0")
    assert nothing_is_kept()


def test_an_index_without_hashes_is_said_to_have_none(tmp_path: Path, use_index) -> None:
    use_index(make_index(tmp_path / "index", make_wheel(tmp_path / "wheels"), digests=False))
    assert "not checked: no index that pip is configured for publishes one" in fetch("4.90.0").hash_note


def test_releases_of_an_index(tmp_path: Path, use_index) -> None:
    folder = tmp_path / "wheels"
    versions = ("4.90.0", "4.91.0", "4.91.1", "5.0.0rc1", "5.0.0")
    use_index(make_index(tmp_path / "index", *(make_wheel(folder, version) for version in versions)))
    for specs, expected in (
        (["latest"], ["5.0.0"]),
        ([">=4.91"], ["4.91.0", "4.91.1", "5.0.0"]),
        (["~=4.91.0", "4.90.0", "4.91.1"], ["4.90.0", "4.91.0", "4.91.1"]),
        (["5.0.0rc1"], ["5.0.0rc1"]),
    ):
        assert [release.version for release in resolve(specs)] == expected
    with pytest.raises(ReleaseError, match=r"there is no transformers 4\.92\.0; near it: 4\.91\.0, 4\.91\.1, 5\.0\.0$"):
        fetch("4.92.0")
    with pytest.raises(ReleaseError, match=r"no release of transformers is >=6; the newest is 5\.0\.0"):
        resolve([">=6"])


def test_a_local_folder_instead_of_the_index(tmp_path: Path, use_index) -> None:
    use_index("http://127.0.0.1:9")
    make_wheel(tmp_path / "wheels", "4.90.0")
    make_wheel(tmp_path / "wheels", "4.91.0")
    (tmp_path / "wheels" / "not a wheel.whl").touch()
    assert [release.version for release in resolve([">=4"], wheels=tmp_path / "wheels")] == ["4.90.0", "4.91.0"]


def test_no_network_but_in_the_cache(tmp_path: Path, use_index) -> None:
    use_index(make_index(tmp_path / "index", make_wheel(tmp_path / "wheels")))
    fetched = fetch("4.90.0")
    use_index("http://127.0.0.1:9")
    assert fetch("4.90.0") == fetched


def test_no_network(use_index) -> None:
    use_index("http://127.0.0.1:9")
    with pytest.raises(ReleaseError, match=r"the index cannot be reached: .*Connection refused"):
        fetch("4.90.0")


def test_too_new_for_this_python_is_still_read(tmp_path: Path, use_index) -> None:
    use_index(make_index(tmp_path / "index", make_wheel(tmp_path / "wheels", requires_python=">=3.99")))
    release = fetch("4.90.0")
    assert (release.read(LLAMA), release.requires_python) == (SMALL_LLAMA, ">=3.99")


def test_a_damaged_cache_is_made_again(tmp_path: Path, use_index) -> None:
    use_index(make_index(tmp_path / "index", make_wheel(tmp_path / "wheels")))
    place = fetch("4.90.0").location
    place.write_bytes(place.read_bytes()[:200])
    assert fetch("4.90.0").read(LLAMA) == SMALL_LLAMA


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "wheels")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheError, match=r"cannot be written( to)?: No space left on device"):
        release_at(wheel)
    assert nothing_is_kept()


@pytest.mark.parametrize("layout", [".", "src", "src/transformers"])
def test_a_checkout(tmp_path: Path, layout: str) -> None:
    package = tmp_path / ("src" if layout.startswith("src") else ".") / "transformers"
    (package / "models" / "llama").mkdir(parents=True)
    (package / "__init__.py").write_text('raise SystemExit\n__version__ = "5.24.0.dev0"\n')
    (package / "models" / "llama" / "modeling_llama.py").write_text(SMALL_LLAMA)
    given = tmp_path if layout == "." else tmp_path / layout if layout != "src" else tmp_path
    (release,) = resolve([str(given)])
    assert (release.version, release.read(LLAMA)) == ("5.24.0.dev0", SMALL_LLAMA)
    assert release.model_files() == [LLAMA]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("new", "'new' is not a release, a range such as"),
        ("./nowhere", "nowhere does not exist"),
        ("nowhere.whl", "nowhere.whl does not exist"),
        (".", r"\. has no transformers/models"),
    ],
)
def test_a_spec_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReleaseError, match=said):
        resolve([spec])
