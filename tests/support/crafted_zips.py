"""Wheels that no builder makes: every field of a zip archive as a test wants it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from synthetic_releases import LLAMA, SMALL_LLAMA

ABOUT = "transformers-4.90.0.dist-info"
METADATA = "Metadata-Version: 2.1\nName: transformers\nVersion: 4.90.0\nRequires-Python: >=3.9\n"


@dataclass
class Member:
    """A member; what stands in the header before it, and in the directory, can be said apart."""

    name: str = LLAMA
    text: str = SMALL_LLAMA
    method: int = 8
    payload: bytes | None = None
    flags: int = 0
    local: dict[str, object] = field(default_factory=dict)
    central: dict[str, object] = field(default_factory=dict)
    extra: bytes = b""
    attributes: int = 0
    after: bytes = b""
    in_directory: bool = True

    def fields(self, own: dict[str, object]) -> tuple[bytes, bytes, bytes]:
        """Name, extra field and the fields that both descriptions have."""
        raw, packed = self.text.encode(), self.packed()
        said = {
            "name": self.name.encode(),
            "extra": self.extra,
            "flags": self.flags,
            "method": self.method,
            "crc": zlib.crc32(raw),
            "packed": len(packed),
            "size": len(raw),
        } | own
        name, extra = said["name"], said["extra"]
        assert isinstance(name, bytes)
        assert isinstance(extra, bytes)
        common = struct.pack(
            "<5H3L2H",
            20, said["flags"], said["method"], 0, 33, said["crc"], said["packed"], said["size"], len(name), len(extra),
        )  # fmt: skip
        return name, extra, common

    def packed(self) -> bytes:
        """The bytes as they are stored."""
        if self.payload is not None:
            return self.payload
        raw = self.text.encode()
        if self.method != 8:
            return raw
        deflate = zlib.compressobj(wbits=-15)
        return deflate.compress(raw) + deflate.flush()


def craft(
    path: Path,
    *members: Member,
    before: bytes = b"",
    after: bytes = b"",
    comment: bytes = b"",
    count: int | None = None,
) -> Path:
    """A wheel of transformers 4.90.0 with these members and its metadata."""
    content, directory = bytearray(before), bytearray()
    every = [*members, Member(f"{ABOUT}/METADATA", METADATA), Member(f"{ABOUT}/WHEEL", "Wheel-Version: 1.0\n")]
    for member in every:
        offset = len(content)
        name, extra, common = member.fields(member.local)
        content += b"PK\3\4" + common + name + extra + member.packed() + member.after
        name, extra, common = member.fields(member.central)
        if member.in_directory:
            tail = struct.pack("<3H2L", 0, 0, 0, member.attributes, member.central.get("offset", offset))
            directory += b"PK\1\2" + struct.pack("<H", 20 | 3 << 8) + common + tail + name + extra
    number = sum(member.in_directory for member in every) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, len(directory), len(content), len(comment))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(content + directory + end + comment + after))
    return path
