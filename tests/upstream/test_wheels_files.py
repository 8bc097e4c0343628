"""Which files of a wheel are model code, what its metadata says, and the limits on its size, each on both sides."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from synthetic_releases import LLAMA, SMALL_LLAMA, make_wheel

from patchkit.errors import WheelError
from patchkit.upstream import wheels
from patchkit.upstream.wheels import is_model_file, opened, packed, read_wheel, wheel_digest

FILES = {
    "transformers/models/llama/modeling_llama.py": True,
    "transformers/models/a/b/modeling_c.py": True,
    "transformers/models/modeling_a.py": True,
    "transformers/models/llama/modeling_llama.pyc": False,
    "transformers/models/llama/modeling_llama": False,
    "transformers/models/llama/xmodeling_llama.py": False,
    "transformers/models/llama/modeling.py": False,
    "transformers/models/llama/modeling_tf_llama.py": False,
    "transformers/models/llama/modeling_flax_llama.py": False,
    "transformers/models/llama/modeling_tfa.py": True,
    "transformers/models/llama/configuration_llama.py": False,
    "transformers/modeling_utils.py": False,
    "transformers/other/modeling_a.py": False,
    "other/models/modeling_a.py": False,
    "src/transformers/models/a/modeling_a.py": False,
    "models/modeling_a.py": False,
    "modeling_a.py": False,
    "": False,
}


@pytest.mark.parametrize("path", FILES)
def test_which_files_are_model_code(path: str) -> None:
    assert is_model_file(path) is FILES[path]


def test_a_wheel_says_all_of_it(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "4.90", {LLAMA: SMALL_LLAMA, "transformers/a.py": ""}, requires_python=">=3.10")
    found = read_wheel(wheel)
    assert found.sha256 == wheel_digest(wheel) == hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert (found.version, found.requires_python, found.files) == ("4.90", ">=3.10", {LLAMA: SMALL_LLAMA.encode()})


@pytest.mark.parametrize(("limit", "said"), [("MAX_WHEEL", "larger than 0 MiB"), ("MAX_FILE", "would unpack to")])
@pytest.mark.parametrize("more", [0, 1])
def test_limits_on_both_sides(
    limit: str, said: str, more: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "x = 1\n" * 40
    wheel = make_wheel(tmp_path, files={LLAMA: text})
    size = wheel.stat().st_size if limit == "MAX_WHEEL" else len(text)
    monkeypatch.setattr(wheels, limit, size - more)
    if more:
        with pytest.raises(WheelError, match=said):
            read_wheel(wheel)
    else:
        assert read_wheel(wheel).files == {LLAMA: text.encode()}


def with_metadata(folder: Path, *members: tuple[str, str]) -> Path:
    """A wheel with these files of metadata and a model file."""
    folder.mkdir(exist_ok=True)
    path = folder / "transformers-4.90.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(LLAMA, SMALL_LLAMA)
        for name, text in members:
            archive.writestr(name, text)
    return path


USUAL = "Metadata-Version: 2.1\nName: transformers\nVersion: 4.90.0\n"
PLACE = "transformers-4.90.0.dist-info/METADATA"
METADATA = {
    # members: version and Python range, or what is said
    "usual": ([(PLACE, f"{USUAL}Requires-Python: >=3.9\n")], ("4.90.0", ">=3.9")),
    "no range": ([(PLACE, USUAL)], ("4.90.0", "")),
    "a name in another form": ([(PLACE, USUAL.replace("transformers", "Transformers"))], ("4.90.0", "")),
    "a version in another form": ([(PLACE, USUAL.replace("4.90.0", "v4.90.0.RC1"))], ("4.90.0rc1", "")),
    "another one further down": ([(PLACE, USUAL), (f"transformers/{PLACE}", "Name: x\n")], ("4.90.0", "")),
    "only one further down": ([(f"transformers/{PLACE}", USUAL)], "it has 0 METADATA files"),
    "none": ([], "it has 0 METADATA files"),
    "one of a folder of another name": ([("transformers.info/METADATA", USUAL)], "it has 0 METADATA files"),
    "two": ([(PLACE, USUAL), ("other.dist-info/METADATA", USUAL)], "it has 2 METADATA files"),
    "another package": ([(PLACE, USUAL.replace("transformers", "peft"))], "is a wheel of peft, not of transformers"),
    "no name": ([(PLACE, "Version: 4.90.0\n")], "is a wheel of None, not of transformers"),
    "no version": ([(PLACE, "Name: transformers\n")], "has no valid version: 'None'"),
    "no valid version": ([(PLACE, USUAL.replace("4.90.0", "new"))], "has no valid version: 'new'"),
}


@pytest.mark.parametrize("case", METADATA)
def test_what_metadata_says(case: str, tmp_path: Path) -> None:
    members, expected = METADATA[case]
    path = with_metadata(tmp_path / "wheels", *members)
    if isinstance(expected, str):
        with pytest.raises(WheelError, match=expected):
            read_wheel(path)
    else:
        found = read_wheel(path)
        assert (found.version, found.requires_python) == expected


# ---- what is kept


def test_the_same_files_are_the_same_bytes() -> None:
    """However they are ordered; and each of them counts."""
    one = packed({"b": b"2", "a": b"1"}, b"{}", "about.json")
    assert one == packed({"a": b"1", "b": b"2"}, b"{}", "about.json")
    others = [
        packed({"a": b"1", "b": b"3"}, b"{}", "about.json"),
        packed({"a": b"1"}, b"{}", "about.json"),
        packed({"b": b"2", "a": b"1"}, b"[]", "about.json"),
    ]
    assert len({one, *others}) == 4
    archive = opened(one)
    assert archive.namelist() == ["about.json", "a", "b"]
    assert [archive.read(name) for name in archive.namelist()] == [b"{}", b"1", b"2"]
    assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    assert archive.comment == hashlib.sha256(one[:-64]).hexdigest().encode()


@pytest.mark.parametrize("where", ["first", "middle", "comment", "last", "shorter", "longer"])
def test_any_change_of_an_archive_is_found(where: str) -> None:
    whole = packed({"a": b"1" * 200}, b"{}", "about.json")
    changed = bytearray(whole)
    if where == "shorter":
        del changed[-1]
    elif where == "longer":
        changed.append(0)
    else:
        changed[{"first": 0, "middle": len(whole) // 2, "comment": -64, "last": -1}[where]] ^= 1
    with pytest.raises(WheelError, match="the archive is damaged"):
        opened(bytes(changed))


@pytest.mark.parametrize("large", [False, True])
def test_an_archive_from_before_there_was_a_digest(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of it is read for its checksum, within the limit on files."""
    path = tmp_path / "old.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1" * 100)
        archive.writestr("b", b"2" * 100)
    monkeypatch.setattr(wheels, "MAX_FILE", 99 if large else 100)
    content = path.read_bytes()
    if large:
        with pytest.raises(WheelError, match="would unpack to"):
            opened(content)
        return
    assert opened(content).namelist() == ["a", "b"]
    with pytest.raises(WheelError, match="the archive is damaged"):
        opened(content.replace(b"2" * 100, b"2" * 99 + b"3"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"of somebody else"
    with pytest.raises(WheelError, match="it has not the digest that it should have"):
        opened(path.read_bytes())
