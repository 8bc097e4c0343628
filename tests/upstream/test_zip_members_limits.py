"""Each rule about a member of an archive alone, with the neighbour that keeps it; each limit on both sides."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from crafted_zips import Member, craft

from patchkit.errors import WheelError
from patchkit.upstream import wheels, zip_members
from patchkit.upstream.wheels import read_wheel
from patchkit.upstream.zip_members import checked_members, read_member

NAME = "transformers-4.90.0-py3-none-any.whl"
MODEL = "transformers/models/llama/modeling_{}.py"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """An archive of five members."""
    return craft(tmp_path / NAME, *(Member(MODEL.format(number)) for number in range(3))).read_bytes()


def check(content: bytes) -> int:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return len(checked_members(archive, content, "the archive"))


def total(content: bytes) -> int:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return sum(info.file_size for info in archive.infolist())


# ---- limits


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("limit", ["MAX_MEMBERS", "MAX_TOTAL", "MAX_RATIO"])
def test_each_limit_on_both_sides(limit: str, over: int, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit is within it. The ratio counts against the bytes of the archive."""
    allowed: object = {"MAX_MEMBERS": 5, "MAX_TOTAL": total(content)}.get(limit, 0) - over
    if limit == "MAX_RATIO":
        monkeypatch.setattr(zip_members, "RATIO_FROM", 0)
        allowed = Fraction(total(content) - over, len(content))
    monkeypatch.setattr(zip_members, limit, allowed)
    if over <= 0:
        assert check(content) == 5
        return
    said = "holds 5 files, more than 4" if limit == "MAX_MEMBERS" else "would unpack to 0 MiB, more than"
    with pytest.raises(WheelError, match=f"^the archive {said}"):
        check(content)


@pytest.mark.parametrize(("above", "refused"), [(-1, False), (0, False), (1, True)])
def test_the_ratio_is_asked_for_above_a_size_only(
    above: int, refused: bool, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short text that repeats itself packs well and is no bomb."""
    monkeypatch.setattr(zip_members, "MAX_RATIO", 0)
    monkeypatch.setattr(zip_members, "RATIO_FROM", total(content) - above)
    if refused:
        with pytest.raises(WheelError, match="0 times its size"):
            check(content)
    else:
        assert check(content) == 5


MIB = 2**20
REAL = {"members": 2_900, "total": 50 * MIB, "wheel": 13 * MIB, "file": MIB}
"""Of transformers 5; a few times as much has to be possible, and a thousand times not."""


@pytest.mark.parametrize(("limit", "real"), [
    (zip_members.MAX_MEMBERS, REAL["members"]), (zip_members.MAX_TOTAL, REAL["total"]),
    (wheels.MAX_WHEEL, REAL["wheel"]), (wheels.MAX_FILE, REAL["file"]), (zip_members.MAX_RATIO, 4),
    (zip_members.RATIO_FROM, 10 * MIB),
])  # fmt: skip
def test_a_release_fits_several_times_and_not_any_number_of_times(limit: int, real: int) -> None:
    assert 4 * real <= limit <= 50 * real


@pytest.mark.parametrize(("limit", "fits"), [(99, False), (100, True), (101, True)])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_largest_file_that_is_read(method: int, limit: int, fits: bool, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("file", "x" * 100)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        (info,) = archive.infolist()
        if fits:
            assert read_member(archive, info, limit) == b"x" * 100
        else:
            with pytest.raises(WheelError, match="'file' would unpack to 0 MiB, more than 0"):
                read_member(archive, info, limit)


@pytest.mark.parametrize("said", [99, 101])
def test_a_file_of_another_size_than_it_says(said: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", "x" * 100)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        (info,) = archive.infolist()
        info.file_size = said
        with pytest.raises((zipfile.BadZipFile, EOFError)):
            read_member(archive, info, 1000)


@pytest.mark.parametrize(("size", "fits"), [(-1, True), (0, True), (1, False)])
def test_the_largest_wheel(size: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = craft(tmp_path / NAME, Member())
    monkeypatch.setattr(wheels, "MAX_WHEEL", path.stat().st_size - size)
    if fits:
        assert len(read_wheel(path).files) == 1
        assert len(wheels.wheel_digest(path)) == 64
    else:
        for read in (read_wheel, wheels.wheel_digest):
            with pytest.raises(WheelError, match=f"^{NAME} is larger than"):
                read(path)


# ---- names and kinds


ABSOLUTE, SPELLING, LEAVES, CONTROL = "absolute", "second spelling", "leads out", "backslash"
PATHS = {
    "a/b.py": None, "a": None, "a/": None, "a/b:c": None, "a.b/..c/d...": None, "é/ß.py": None,
    "/a": ABSOLUTE, "/": ABSOLUTE, "C:a": ABSOLUTE, "c:/a/b": ABSOLUTE, ":": ABSOLUTE,
    "a\\b": CONTROL, "a\x00b": CONTROL, "a/b\x1b": CONTROL, "a\nb": CONTROL, "a\u202eb": CONTROL,
    "..": LEAVES, "../a": LEAVES, "a/../b": LEAVES, "a/..": LEAVES, "a/../": LEAVES,
    "./a": SPELLING, "a/./b": SPELLING, "a/.": SPELLING, "a//b": SPELLING, "a//": SPELLING, "": SPELLING,
    "seen": "is there twice", "seen/": "is there twice", "folder": "is there twice", "folder/": "is there twice",
    "seen/more": None, "unseen": None,
}  # fmt: skip


def member(path: str = "a", **changes: object) -> SimpleNamespace:
    about = {
        "filename": path, "external_attr": 0, "flag_bits": 0, "compress_type": 8, "compress_size": 5, "file_size": 9,
    }  # fmt: skip
    return SimpleNamespace(**about | changes)


def why(info: SimpleNamespace, path: str = "a") -> str | None:
    return zip_members._why_unsafe(info, path, {"seen", "folder"})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_each_spelling_of_a_name(path: str) -> None:
    said, expected = why(member(path), path), PATHS[path]
    assert said is None if expected is None else (said is not None and expected in said)


def test_a_name_that_the_reader_changed() -> None:
    """At a null byte, say: what is checked has to be what is read."""
    assert "second spelling" in str(why(member("a/b"), "a/c"))


KINDS = {
    0: True, stat.S_IFREG: True, stat.S_IFDIR: True, stat.S_IFLNK: False, stat.S_IFIFO: False, stat.S_IFSOCK: False,
    stat.S_IFCHR: False, stat.S_IFBLK: False,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=oct)
@pytest.mark.parametrize("below", [0, 0xFFFF], ids=["", "with DOS attributes"])
def test_each_kind_of_file(kind: int, below: int) -> None:
    said = why(member(external_attr=(kind | 0o777) << 16 | below))
    assert (said is None) if KINDS[kind] else (said == "is a symbolic link or a device")


@pytest.mark.parametrize("bit", range(16))
def test_each_flag(bit: int) -> None:
    """1, 6 and 13 encrypt; 5 is for patches; the others change nothing of what is read here."""
    said = why(member(flag_bits=1 << bit))
    if bit in (0, 6, 13):
        assert said == "is encrypted"
    elif bit == 5:
        assert "stored and deflated files only" in str(said)
    else:
        assert said is None


@pytest.mark.parametrize("sizes", [(9, 9), (5, 9), (9, 5)])
@pytest.mark.parametrize("method", [0, 1, 6, 8, 9, 12, 14, 93, 95, 98])
def test_each_method(method: int, sizes: tuple[int, int]) -> None:
    said = why(member(compress_type=method, compress_size=sizes[0], file_size=sizes[1]))
    if method == zipfile.ZIP_DEFLATED or (method == zipfile.ZIP_STORED and sizes[0] == sizes[1]):
        assert said is None
    elif method == zipfile.ZIP_STORED:
        assert said == "is stored, in another size than it has"
    else:
        assert f"by method {method};" in str(said)


def field(kind: int, size: int, said: int | None = None) -> bytes:
    return struct.pack("<HH", kind, size if said is None else said) + b"x" * size


EXTRA = {
    "none": (b"", None),
    "one": (field(0x5455, 5), None),
    "an empty one": (field(0x5455, 0), None),
    "two": (field(0x5455, 5) + field(0x7875, 3), None),
    "zip64": (field(0x0001, 16), "0x0001"),
    "zip64 behind another": (field(0x5455, 5) + field(0x0001, 16), "0x0001"),
    "a path": (field(0x7075, 9), "0x7075"),
    "another path behind two": (field(0x5455, 0) + field(0x7875, 1) + field(0x7075, 9), "0x7075"),
    "a byte": (b"x", "a damaged extra field"),
    "three bytes": (b"xxx", "a damaged extra field"),
    "three bytes behind one": (field(0x5455, 5) + b"xxx", "a damaged extra field"),
    "a byte less than it says": (field(0x5455, 5, 6), "or is damaged"),
    "less than it says behind one": (field(0x5455, 2) + field(0x5455, 5, 6), "or is damaged"),
}


@pytest.mark.parametrize("case", EXTRA)
def test_each_extra_field(case: str) -> None:
    extra, expected = EXTRA[case]
    said = zip_members._why_extra(extra)
    assert said is None if expected is None else (said is not None and expected in said)


# ---- where members lie


@pytest.mark.parametrize(("start", "size", "inside"), [
    (0, 30, True), (0, 29, False), (1, 31, True), (1, 30, False), (-1, 99, False), (2**31, 99, False),
])  # fmt: skip
def test_the_header_has_to_be_in_the_file(start: int, size: int, inside: bool) -> None:
    info = SimpleNamespace(header_offset=start)
    said = zip_members._why_ambiguous(info, b"\0" * size)  # type: ignore[arg-type]
    assert said == ("has no header before it" if inside else "lies outside of the file")


@pytest.mark.parametrize("size", [0, 1, 8, 11, 12, 13, 15, 16, 17, 20, 24])
@pytest.mark.parametrize("flags", [0, 0x8], ids=["plain", "with a descriptor"])
@pytest.mark.parametrize("place", ["first", "last of the model files"])
def test_what_may_follow_a_member(place: str, flags: int, size: int, tmp_path: Path) -> None:
    """A descriptor of 12 or 16 bytes, if it says that it has one; else nothing."""
    chosen = Member(MODEL.format("a"), flags=flags, after=b"\0" * size)
    other = Member(MODEL.format("b"))
    path = craft(tmp_path / NAME, *((chosen, other) if place == "first" else (other, chosen)))
    if size in ((12, 16) if flags else (0,)):
        assert len(read_wheel(path).files) == 2
    else:
        with pytest.raises(WheelError, match="something that is none of its members"):
            read_wheel(path)


def test_members_may_lie_in_another_order_than_the_directory_says(tmp_path: Path) -> None:
    """Which nobody forbids; each has to be where the directory says, and nothing between them."""
    path = craft(tmp_path / NAME, Member(MODEL.format("a")), Member(MODEL.format("b")))
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", start + 1)
    third = data.index(b"PK\1\2", second + 1)
    path.write_bytes(data[:start] + data[second:third] + data[start:second] + data[third:])
    assert list(read_wheel(path).files) == [MODEL.format("b"), MODEL.format("a")]


END = struct.Struct("<4s4H2LH")
END_FIELDS = {
    # field of the directory's end: what stands there instead
    "entries on this disk": (3, 4), "entries": (4, 9), "where the directory begins": (6, 1), "size of the directory": (5, 1),
    "length of the comment": (7, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", END_FIELDS)
def test_each_field_of_the_end_counts(name: str, content: bytes) -> None:
    place, change = END_FIELDS[name]
    fields = list(END.unpack(content[-END.size :]))
    fields[place] = fields[place] + change if place in (5, 6, 7) else change
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members, start = archive.infolist(), archive.start_dir
    zip_members._nothing_else(members, start, content, "the archive")
    with pytest.raises(WheelError, match="its directory is not all that follows its members"):
        zip_members._nothing_else(members, start, content[: -END.size] + END.pack(*fields), "the archive")
