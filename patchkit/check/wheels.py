"""Reading a wheel without trusting it: which files it holds is checked, and only model code is ever decompressed.

Nothing is unpacked to disk and nothing is imported. What is kept is a small archive of the model files.
"""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from patchkit.errors import WheelError

PACKAGE = "transformers"

MAX_MEMBERS = 50_000
MAX_FILE = 16 * 2**20
MAX_TOTAL = 512 * 2**20
"""Limits on what a wheel says it holds, in files and bytes. transformers 5 has 2,500 files, none over 1 MB."""

_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """The part of a wheel that is read.

    Attributes:
        version: of transformers.
        requires_python: its range of Python versions; empty if it names none.
        sha256: of the whole wheel file.
        files: text of its model files, as bytes, by path from the root of the wheel.
    """

    version: str
    requires_python: str
    sha256: str
    files: dict[str, bytes]


def is_model_file(path: str) -> bool:
    """Whether a file of the wheel is PyTorch model code: ``transformers/models/**/modeling_*.py``."""
    parts = PurePosixPath(path).parts
    name = parts[-1] if parts else ""
    return (
        parts[:2] == (PACKAGE, "models")
        and name.startswith("modeling_")
        and name.endswith(".py")
        and not name.startswith(("modeling_tf_", "modeling_flax_"))
    )


def read_wheel(path: Path) -> Wheel:
    """Check a wheel of transformers and read its model files.

    Raises:
        WheelError: it is no wheel of transformers, is damaged, or holds something unsafe; with the member's name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = list(_checked(archive, path.name))
            metadata = _metadata(archive, members, path.name)
            files = {info.filename: _read(archive, info) for info in members if is_model_file(info.filename)}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WheelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, WheelError):
            raise
        raise WheelError(f"{path.name} is damaged or cut short: {error}") from error
    if not files:
        raise WheelError(f"{path.name} holds no {PACKAGE}/models/**/modeling_*.py")
    return Wheel(metadata[0], metadata[1], digest, files)


def _checked(archive: zipfile.ZipFile, name: str) -> Iterator[zipfile.ZipInfo]:
    """The members of an archive, none of which lies outside of it, is a link, or is too large."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise WheelError(f"{name} holds {len(members)} files, more than {MAX_MEMBERS}")
    if (total := sum(info.file_size for info in members)) > MAX_TOTAL:
        raise WheelError(f"{name} would unpack to {total / 2**20:.0f} MiB, more than {MAX_TOTAL >> 20}")
    seen: set[str] = set()
    for info in members:
        # ZipInfo cuts a name at a null byte and turns backslashes on Windows alone; the original says what was meant.
        if why := _why_unsafe(info, info.orig_filename, seen):
            raise WheelError(f"{name} is not safe to unpack: {info.orig_filename!r} {why}")
        seen.add(info.filename)
        yield info


def _why_unsafe(info: zipfile.ZipInfo, path: str, seen: set[str]) -> str | None:
    if path.startswith("/") or ":" in path.split("/")[0]:
        return "is an absolute path"
    if "\\" in path or "\0" in path:
        return "has a backslash or a null byte in its name"
    if ".." in path.split("/"):
        return "leads out of the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a symbolic link"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if path in seen:
        return "is there twice"
    if is_model_file(path) and info.file_size > MAX_FILE:
        return f"would unpack to {info.file_size / 2**20:.0f} MiB, more than {MAX_FILE >> 20}"
    return None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes: never more than its header says, and checked against its checksum."""
    if info.file_size > MAX_FILE:
        raise WheelError(f"{info.filename!r} would unpack to {info.file_size / 2**20:.0f} MiB")
    with archive.open(info) as file:
        return file.read(info.file_size + 1)


def _metadata(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], name: str) -> tuple[str, str]:
    """Version and Python range."""
    found = [
        info for info in members if info.filename.endswith(".dist-info/METADATA") and info.filename.count("/") == 1
    ]
    if len(found) != 1:
        raise WheelError(f"{name} is not a wheel: it has {len(found)} METADATA files")
    header = BytesHeaderParser().parsebytes(_read(archive, found[0]))
    package, version = str(header["Name"]), str(header["Version"])
    if canonicalize_name(package) != PACKAGE:
        raise WheelError(f"{name} is a wheel of {package}, not of {PACKAGE}")
    try:
        return str(Version(version)), str(header["Requires-Python"] or "")
    except InvalidVersion as error:
        raise WheelError(f"{name} has no valid version: {version!r}") from error


def packed(files: dict[str, bytes], about: bytes, about_name: str) -> bytes:
    """The files as a zip archive, the same bytes for the same files, with one more file about them."""
    buffer = io.BytesIO()
    # Level 1: a release is packed once and read a few times; level 6 takes three times as long for a tenth in size.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, content in [(about_name, about), *sorted(files.items())]:
            info = zipfile.ZipInfo(path, _FIXED_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()
