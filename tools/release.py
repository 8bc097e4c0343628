"""What a release has to be: ``python tools/release.py check v0.1.0``, ``python tools/release.py build``.

``check`` compares tag, version and changelog. ``build`` makes the source distribution and the wheel, twice, and
compares their bytes; it needs ``build`` (extra: release).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


class ReleaseError(Exception):
    """The repository is not in the state of a release, or its build is not reproducible."""


def check(tag: str, root: Path = ROOT) -> None:
    """That a tag, the version and the changelog name one release.

    Raises:
        ReleaseError: they do not.
    """
    version = _found(r'__version__ = "(.+)"', root / "patchkit" / "version.py")
    if tag != f"v{version}":
        raise ReleaseError(f"the tag is {tag}, and patchkit/version.py says {version}")
    heading, dated = f"## [{version}]", rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    if not re.search(dated, changelog, re.MULTILINE):
        raise ReleaseError(f"CHANGELOG.md has no line '{heading} - YYYY-MM-DD'")
    cited = _found(r"(?m)^version: (.+)$", root / "CITATION.cff")
    if cited != version:
        raise ReleaseError(f"CITATION.cff says {cited}, and patchkit/version.py says {version}")


def _found(pattern: str, file: Path) -> str:
    found = re.search(pattern, file.read_text("utf-8"))
    if found is None:
        raise ReleaseError(f"{file.name} has no version")
    return found[1]


def build(folder: Path, root: Path = ROOT) -> list[Path]:
    """Build the distributions into a folder.

    Raises:
        ReleaseError: a second build has other bytes.
        CalledProcessError: it cannot be built.
    """
    first, second = _built(folder, root), {}
    with tempfile.TemporaryDirectory() as again:
        second = _built(Path(again), root)
    differing = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    if differing:
        raise ReleaseError(f"built twice, these differ: {', '.join(differing)}")
    return [folder / name for name in sorted(first)]


def _built(folder: Path, root: Path) -> dict[str, bytes]:
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in {".whl", ".gz"}}


def main(arguments: list[str]) -> int:
    """Run a command; 1 if what it asks is not so, 2 for wrong usage."""
    try:
        match arguments:
            case ["check", tag]:
                check(tag)
            case ["build"]:
                for file in build(ROOT / "dist"):
                    sys.stdout.write(f"{file.relative_to(ROOT)}\n")
            case _:
                sys.stderr.write(f"{__doc__}\n")
                return 2
    except (ReleaseError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"release: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
