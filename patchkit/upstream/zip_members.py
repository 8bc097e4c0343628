"""The members of a zip archive that nobody vouches for, each of which every reader would find in the same way.

A zip archive describes its members twice: in a header before each, and in a directory at its end. Readers that believe
one or the other can be shown different files. So both are compared, and the archive has to be nothing but its members,
one after another, and the directory, as PyPI and uv demand of wheels. Numbers are those of PKWARE's APPNOTE.TXT.
"""

from __future__ import annotations

import stat
import struct
import zipfile

from patchkit.errors import WheelError

MAX_MEMBERS = 50_000
MAX_TOTAL = 512 * 2**20
MAX_RATIO = 50
RATIO_FROM = 64 * 2**20
"""Limits on what a wheel says it holds: files; bytes; and bytes for each byte of the wheel, asked for only above a
size, as PyPI does. transformers 5 has 2,900 files and 50 MB in 13 MB."""

_LOCAL = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # encrypted, strongly, or with masked headers
_PATCH = 0x20
_DESCRIPTOR = 0x8
_DESCRIPTOR_SIZES = (12, 16)  # with and without a signature

_ZIP64 = 0x0001
_UNICODE_PATH = 0x7075

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def checked_members(archive: zipfile.ZipFile, content: bytes, name: str) -> list[zipfile.ZipInfo]:
    """The members of an archive, none of which is unsafe or means two things.

    Args:
        archive: opened on ``content``.
        content: all of the file.
        name: of the file, for messages.

    Raises:
        WheelError: with the member's name.
        zipfile.BadZipFile, struct.error: the archive is damaged.
    """
    members = archive.infolist()
    total = sum(info.file_size for info in members)
    if len(members) > MAX_MEMBERS:
        raise WheelError(f"{name} holds {len(members)} files, more than {MAX_MEMBERS}")
    if total > MAX_TOTAL or (total > RATIO_FROM and total > MAX_RATIO * len(content)):
        raise WheelError(
            f"{name} would unpack to {total / 2**20:.0f} MiB, more than {MAX_TOTAL >> 20} or {MAX_RATIO} times its size"
        )
    seen: set[str] = set()
    for info in members:
        # ZipInfo cuts a name at a null byte and turns backslashes on Windows alone; the original says what was meant.
        why = _why_unsafe(info, info.orig_filename, seen) or _why_ambiguous(info, content)
        if why:
            raise WheelError(f"{name} is not safe to unpack: {info.orig_filename!r} {why}")
        seen.add(info.orig_filename.rstrip("/"))
    _nothing_else(members, archive.start_dir, content, name)
    return members


def _why_unsafe(info: zipfile.ZipInfo, path: str, seen: set[str]) -> str | None:
    if path.startswith("/") or ":" in path.split("/")[0]:
        return "is an absolute path"
    if "\\" in path or not path.isprintable():
        return "has a backslash, a null byte or a control character in its name"
    parts = path.rstrip("/").split("/")
    if ".." in parts:
        return "leads out of the archive"
    if "." in parts or "" in parts or path.endswith("//") or info.filename != path:
        return "is a second spelling of another path"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link or a device"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS or info.flag_bits & _PATCH:
        return f"is compressed by method {info.compress_type}; wheels have stored and deflated files only"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "is stored, in another size than it has"
    if path.rstrip("/") in seen:
        return "is there twice"
    return None


def _why_ambiguous(info: zipfile.ZipInfo, content: bytes) -> str | None:
    """Where the header before a member says something else than the directory."""
    start = info.header_offset
    if not 0 <= start <= len(content) - _LOCAL.size:
        return "lies outside of the file"
    signature, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack_from(content, start)
    names = content[start + _LOCAL.size : start + _LOCAL.size + name_size + extra_size]
    if signature != _LOCAL_SIGNATURE:
        return "has no header before it"
    if names[:name_size].decode("utf-8" if flags & 0x800 else "cp437", "replace") != info.orig_filename:
        return "has another name in the header before it"
    if flags != info.flag_bits or method != info.compress_type:
        return "has other flags in the header before it"
    here, there = (crc, packed, size), (info.CRC, info.compress_size, info.file_size)
    if here != there and not (flags & _DESCRIPTOR and here == (0, 0, 0)):
        return "has another size or checksum in the header before it"
    for extra in (names[name_size:], info.extra):
        if why := _why_extra(extra):
            return why
    return None


def _why_extra(extra: bytes) -> str | None:
    """Extra fields that change what a name or a size is. A wheel of this size needs neither."""
    while extra:
        if len(extra) < 4:
            return "has a damaged extra field"
        kind, size = struct.unpack_from("<HH", extra)
        if kind in (_ZIP64, _UNICODE_PATH) or size > len(extra) - 4:
            return f"has an extra field {kind:#06x}, which changes its size or name, or is damaged"
        extra = extra[4 + size :]
    return None


def _nothing_else(members: list[zipfile.ZipInfo], directory: int, content: bytes, name: str) -> None:
    """The file is its members without gaps or overlaps, then its directory and the directory's end, then nothing."""
    ordered = sorted(members, key=lambda info: info.header_offset)
    ends = [0]
    for info in ordered:
        name_size, extra_size = struct.unpack_from("<2H", content, info.header_offset + 26)
        ends.append(info.header_offset + _LOCAL.size + name_size + extra_size + info.compress_size)
    starts = [*(info.header_offset for info in ordered), directory]
    for index, (end, start) in enumerate(zip(ends, starts, strict=True)):
        described = index and ordered[index - 1].flag_bits & _DESCRIPTOR
        if start - end not in (_DESCRIPTOR_SIZES if described else (0,)):
            raise WheelError(f"{name} is not safe to unpack: at byte {end} is something that is none of its members")
    signature, _, _, here, count, size, offset, comment = _END.unpack_from(content, max(len(content) - _END.size, 0))
    if (signature, here, count, offset, comment) != (_END_SIGNATURE, len(members), len(members), directory, 0) or (
        directory + size != len(content) - _END.size
    ):
        raise WheelError(f"{name} is not safe to unpack: its directory is not all that follows its members")


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """A member's bytes, checked against its checksum; reading stops at the size that its header says.

    Raises:
        WheelError: it is larger than ``limit``.
        zipfile.BadZipFile, zlib.error, EOFError: it is damaged, or not of the size that it says.
    """
    if info.file_size > limit:
        raise WheelError(f"{info.filename!r} would unpack to {info.file_size / 2**20:.0f} MiB, more than {limit >> 20}")
    with archive.open(info) as file:
        # Deflated bytes are unpacked as they are asked for, one more of them than there should be.
        found = file.read(info.file_size + 1)
    if len(found) != info.file_size:
        raise zipfile.BadZipFile(f"{info.filename!r} has another size than it says")
    return found
