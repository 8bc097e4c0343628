"""Reading a wheel without trusting it: which files it holds is checked, and only model code is ever decompressed.

Nothing is unpacked to disk and nothing is imported. What is kept is a small archive of the model files.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path, PurePosixPath

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from patchkit.errors import WheelError
from patchkit.upstream.zip_members import checked_members, read_member

PACKAGE = "transformers"
PEFT = "peft"

MAX_WHEEL = 256 * 2**20
MAX_FILE = 16 * 2**20
"""Limits on a wheel and on a file that is read. transformers 5 has 13 MB, and no file of model code over 1 MB."""

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    OSError,
)
"""What the standard library's reader raises for an archive that is damaged. ``OSError``: a seek to nowhere."""

_SEAL = 64

_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """The part of a wheel that is read.

    Attributes:
        version: of the package.
        requires_python: its range of Python versions; empty if it names none.
        sha256: of the whole wheel file.
        files: text of the files that are kept, as bytes, by path from the root of the wheel.
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


def is_layer_file(path: str) -> bool:
    """Whether a file of a wheel of PEFT is one that its LoRA layers are made of."""
    parts = PurePosixPath(path).parts
    return path.endswith(".py") and (
        parts[:3] == (PEFT, "tuners", "lora")
        or parts == (PEFT, "tuners", "tuners_utils.py")
        or parts[:2] == (PEFT, "utils")
    )


_KEPT: dict[str, tuple[Callable[[str], bool], str]] = {
    PACKAGE: (is_model_file, f"{PACKAGE}/models/**/modeling_*.py"),
    PEFT: (is_layer_file, f"{PEFT}/tuners/lora/*.py"),
}
"""What is read of a wheel of each package, and how that is called."""


def read_wheel(path: Path, package: str = PACKAGE) -> Wheel:
    """Check a wheel of transformers and read its model files; or one of PEFT, and the files of its layers.

    Raises:
        WheelError: it is no wheel of the package, is damaged, or holds something unsafe; with the member's name.
    """
    is_kept, pattern = _KEPT[package]
    content = _content(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = checked_members(archive, content, path.name)
            version, requires_python = _metadata(archive, members, path.name, package)
            found = [info for info in members if is_kept(info.filename)]
            files = {info.filename: read_member(archive, info, MAX_FILE) for info in found}
    except WheelError:
        raise
    except DAMAGED as error:
        raise WheelError(f"{path.name} is damaged or cut short: {error}") from error
    if not files:
        raise WheelError(f"{path.name} holds no {pattern}")
    return Wheel(version, requires_python, hashlib.sha256(content).hexdigest(), files)


def wheel_digest(path: Path) -> str:
    """The SHA-256 of a wheel.

    Raises:
        WheelError: it cannot be read, or is too large.
    """
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    """All of a wheel: what is hashed is what is read, whatever happens to the file meanwhile."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_WHEEL + 1)
    except OSError as error:
        raise WheelError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_WHEEL:
        raise WheelError(f"{path.name} is larger than {MAX_WHEEL >> 20} MiB")
    return content


def _metadata(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], name: str, expected: str) -> tuple[str, str]:
    """Version and Python range."""
    found = [
        info for info in members if info.filename.endswith(".dist-info/METADATA") and info.filename.count("/") == 1
    ]
    if len(found) != 1:
        raise WheelError(f"{name} is not a wheel: it has {len(found)} METADATA files")
    header = BytesHeaderParser().parsebytes(read_member(archive, found[0], MAX_FILE))
    package, version = str(header["Name"]), str(header["Version"])
    if canonicalize_name(package) != expected:
        raise WheelError(f"{name} is a wheel of {package}, not of {expected}")
    try:
        return str(Version(version)), str(header["Requires-Python"] or "")
    except InvalidVersion as error:
        raise WheelError(f"{name} has no valid version: {version!r}") from error


def packed(files: dict[str, bytes], about: bytes, about_name: str) -> bytes:
    """The files as a zip archive, the same bytes for the same files, with one more file about them.

    The archive ends with its own SHA-256, as its comment: see :func:`opened`.
    """
    buffer = io.BytesIO()
    # Level 1: a release is packed once and read a few times; level 6 takes three times as long for a tenth in size.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path, content in [(about_name, about), *sorted(files.items())]:
            info = zipfile.ZipInfo(path, _FIXED_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    # The last two bytes of an archive without a comment are the length of its comment.
    sealed = buffer.getvalue()[:-2] + _SEAL.to_bytes(2, "little")
    return sealed + hashlib.sha256(sealed).hexdigest().encode()


def opened(content: bytes) -> zipfile.ZipFile:
    """An archive that :func:`packed` made, of which not a bit has changed since.

    One from before archives had a digest is taken if the checksum of every file in it is right.

    Raises:
        WheelError: it has changed.
    """
    sealed, digest = content[:-_SEAL], content[-_SEAL:]
    try:
        if hashlib.sha256(sealed).hexdigest().encode() == digest:
            return zipfile.ZipFile(io.BytesIO(content))
        archive = zipfile.ZipFile(io.BytesIO(content))
        if not archive.comment:
            for info in checked_members(archive, content, "the archive"):
                read_member(archive, info, MAX_FILE)
            return archive
    except WheelError:
        raise
    except DAMAGED as error:
        raise WheelError(f"the archive is damaged: {error}") from error
    raise WheelError("the archive is damaged: it has not the digest that it should have")
