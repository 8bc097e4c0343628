"""Copies of the working tree. A mutant is written into a copy of its own, and a run may do there what it likes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


def files_of(root: Path) -> list[str]:
    """The files of a working tree, tracked or new, that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    return sorted(name for name in set(listed.split("\0")) if name and (root / name).is_file())


def copy_tree(root: Path, files: Iterable[str], target: Path) -> None:
    """Make a fresh copy; what stands there is removed."""
    shutil.rmtree(target, ignore_errors=True)
    for name in files:
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, copied)


def state_of(root: Path, files: Iterable[str]) -> str:
    """A hash of files: of what they are called and what they hold."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    return total.hexdigest()[:16]
