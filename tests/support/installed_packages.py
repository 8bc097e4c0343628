"""Packages as pip would have installed them: files in a folder on ``sys.path``, and metadata beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def install_package(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    *,
    version: str = "1.0",
    architectures: Mapping[str, str] = {},
    needs: Sequence[str] = (),
) -> Path:
    """Write a distribution into a folder.

    Args:
        folder: that is, or will be, on ``sys.path``.
        name: of the distribution.
        files: text by path.
        version: of the distribution.
        architectures: entry points of patchkit's group.
        needs: names of other distributions.
    """
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    required = "".join(f"Requires-Dist: {other}\n" for other in needs)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}")
    (about / "top_level.txt").write_text("".join(f"{top}\n" for top in sorted({_top(path) for path in files})))
    (about / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    lines = [f"{key} = {value}" for key, value in architectures.items()]
    (about / "entry_points.txt").write_text("\n".join(["[patchkit.architectures]", *lines, ""]))
    return folder


def _top(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")
