"""Archives that say two things, hide something, or unpack to more than they should: each is refused by name."""

from __future__ import annotations

import bz2
import lzma
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from crafted_zips import Member, craft
from synthetic_releases import LLAMA, SMALL_LLAMA

from patchkit.errors import WheelError
from patchkit.upstream.wheels import read_wheel

resource = pytest.importorskip("resource", reason="Windows measures and limits memory in another way")

NAME = "transformers-4.90.0-py3-none-any.whl"
OTHER = "transformers/models/llama/modeling_other.py"


def zip64(size: int, packed: int) -> bytes:
    return struct.pack("<HHQQ", 0x0001, 16, size, packed)


def unicode_path(name: str, other: str) -> bytes:
    content = struct.pack("<BL", 1, zlib.crc32(name.encode())) + other.encode()
    return struct.pack("<HH", 0x7075, len(content)) + content


def lzma_payload(content: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**16}]
    properties = lzma._encode_filter_properties(filters[0])  # type: ignore[attr-defined]
    return struct.pack("<BBH", 9, 4, len(properties)) + properties + lzma.compress(
        content, format=lzma.FORMAT_RAW, filters=filters
    )  # fmt: skip


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (Member(OTHER, method=12, payload=bz2.compress(SMALL_LLAMA.encode())), "is compressed by method 12"),
        (Member(OTHER, method=14, payload=lzma_payload(SMALL_LLAMA.encode())), "is compressed by method 14"),
        (Member(OTHER, method=9), "is compressed by method 9"),
        (Member(OTHER, method=93), "is compressed by method 93"),
        (Member("transformers/data.bin", method=12, payload=bz2.compress(b"x")), "is compressed by method 12"),
        (Member(OTHER, flags=0x1), "is encrypted"),
        (Member(OTHER, flags=0x40), "is encrypted"),
        (Member(OTHER, flags=0x2000), "is encrypted"),
        (Member(OTHER, flags=0x20), "stored and deflated files only"),
        (Member(OTHER, local={"name": LLAMA.encode()}), "has another name in the header before it"),
        (Member(OTHER, local={"method": 0}), "has other flags in the header before it"),
        (Member(OTHER, local={"flags": 0x8}), "has other flags in the header before it"),
        (Member(OTHER, local={"crc": 1}), "has another size or checksum"),
        (Member(OTHER, local={"size": 1}), "has another size or checksum"),
        (Member(OTHER, local={"packed": 1}), "has another size or checksum"),
        (Member(OTHER, local={"crc": 0, "packed": 0, "size": 0}), "has another size or checksum"),
        (Member(OTHER, central={"offset": 0}), "has another name in the header before it"),
        (Member(OTHER, central={"offset": 5}), "has no header before it"),
        (Member(OTHER, central={"offset": 0x7FFFFFFF}), "lies outside of the file"),
        (Member(OTHER, method=0, central={"size": 5}), "is stored, in another size than it has"),
        (Member(OTHER, extra=zip64(1, 1)), "has an extra field 0x0001"),
        (Member(OTHER, local={"extra": zip64(1, 1)}), "has an extra field 0x0001"),
        (Member(OTHER, extra=unicode_path(OTHER, LLAMA)), "has an extra field 0x7075"),
        (Member(OTHER, local={"extra": b"\1\0\xff\xff"}), "or is damaged"),
        (Member(OTHER, local={"extra": b"\1"}), "has a damaged extra field"),
        (Member(OTHER, after=b"hidden"), "something that is none of its members"),
        (Member(OTHER, in_directory=False), "something that is none of its members"),
        (Member(f"./{OTHER}"), "is a second spelling"),
        (Member(OTHER.replace("/", "//")), "is a second spelling"),
        (Member(f"{LLAMA}/"), "is there twice"),
        (Member(OTHER.replace("other", "o\x1b[31m")), "control character"),
        (Member(OTHER.replace("other", "o\u202eyp")), "control character"),
        (Member(OTHER, attributes=(stat.S_IFLNK | 0o777) << 16), "is a symbolic link or a device"),
        (Member(OTHER, attributes=(stat.S_IFIFO | 0o777) << 16), "is a symbolic link or a device"),
    ],
)  # fmt: skip
def test_a_member_that_is_not_what_it_seems(tmp_path: Path, member: Member, said: str) -> None:
    if "\u202e" in member.name:
        member.flags = 0x800
    with pytest.raises(WheelError, match="is not safe to unpack") as error:
        read_wheel(craft(tmp_path / NAME, Member(), member))
    assert said in str(error.value)
    assert str(error.value).isprintable()


def test_the_same_with_nothing_wrong(tmp_path: Path) -> None:
    """So that each case above is refused for what it says."""
    described = struct.pack("<3L", zlib.crc32(SMALL_LLAMA.encode()), len(Member().packed()), len(SMALL_LLAMA))
    members = [
        Member(OTHER, method=0),
        Member("transformers/models/", "", method=0, attributes=(stat.S_IFDIR | 0o755) << 16),
        Member("transformers/modèle.txt", flags=0x800),
        # As a writer that cannot seek does it.
        *(
            Member(
                OTHER.replace("other", f"o{len(mark)}"),
                flags=0x8,
                local={"crc": 0, "packed": 0, "size": 0},
                after=mark + described,
            )
            for mark in (b"", b"PK\7\x08")
        ),
    ]
    wheel = read_wheel(craft(tmp_path / NAME, Member(), *members))
    assert set(wheel.files.values()) == {SMALL_LLAMA.encode()}
    assert len(wheel.files) == 4


@pytest.mark.parametrize(
    "parts",
    [{"before": b"#!/bin/sh\n"}, {"after": b"PK"}, {"comment": b"see PK\5\6"}, {"count": 2}, {"count": 9}],
    ids=["something before", "something after", "a comment", "too few counted", "too many counted"],
)
def test_an_archive_that_is_more_than_its_members(tmp_path: Path, parts: dict[str, bytes]) -> None:
    with pytest.raises(WheelError, match=r"is not safe to unpack|damaged"):
        read_wheel(craft(tmp_path / NAME, Member(), **parts))  # type: ignore[arg-type]


def test_two_archives_in_one_file(tmp_path: Path) -> None:
    first = craft(tmp_path / "a" / NAME, Member(text="x = 1\n")).read_bytes()
    with pytest.raises(WheelError, match="is not safe to unpack"):
        read_wheel(craft(tmp_path / NAME, Member(), before=first))


READ = """
import resource, sys
from pathlib import Path
from patchkit.upstream.wheels import read_wheel
from patchkit.errors import WheelError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_wheel(Path(sys.argv[1]))
except WheelError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("method", ["bzip2", "lzma", "deflate", "deflate that lies", "deflate within the limits"])
def test_a_bomb_takes_no_memory(tmp_path: Path, method: str) -> None:
    """A wheel of kilobytes that unpacks to a gigabyte, as bzip2 and LZMA can; memory is measured by the system."""
    size = 2**27 if method.startswith(("bzip2", "lzma")) else 2**26
    zeros = bytes(size)
    packers = {"bzip2": (12, bz2.compress), "lzma": (14, lzma_payload)}
    number, pack = packers.get(method, (8, lambda content: zlib.compress(content, 9)[2:-4]))
    payload = pack(zeros)
    said = {"size": 1000} if "lies" in method or number != 8 else {"size": size}
    if "within" in method:
        said = {"size": 2**24}
    bomb = Member(OTHER, "", method=number, payload=payload, local={**said, "crc": 0}, central={**said, "crc": 0})
    wheel = craft(tmp_path / NAME, Member(), bomb)
    del zeros, payload
    done = subprocess.run(
        [sys.executable, "-c", READ, str(wheel)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
    )
    said_text, grown = done.stdout.strip().rsplit("\n", 1)
    assert "transformers" in said_text
    assert int(grown) < 64, f"{grown} MiB for a wheel of {wheel.stat().st_size} bytes"
