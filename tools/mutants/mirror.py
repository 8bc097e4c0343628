"""Which source files are mutated, and which tests each of them answers to: ``mirror.toml`` and the convention in it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tools.mutants.configuration import read_toml

DECLARED = Path(__file__).with_name("mirror.toml")


class MirrorError(Exception):
    """The declaration does not fit the tree."""


@dataclass(frozen=True)
class Extra:
    """Tests beyond the convention.

    Attributes:
        sources: patterns of source files.
        tests: patterns of the test files that these answer to as well.
        why: why these.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Mirror:
    """The declaration, for one tree.

    Attributes:
        root: the repository's root.
        rooms: patterns of the source files of each room.
        extras: tests beyond the convention.
        preload: modules that every test process finds imported.
        arguments: of pytest.
        roots: folders from which code is imported.
    """

    root: Path
    rooms: dict[str, tuple[str, ...]]
    extras: tuple[Extra, ...]
    preload: tuple[str, ...]
    arguments: tuple[str, ...]
    roots: tuple[str, ...]

    def sources(self, room: str) -> list[str]:
        """The files of a room that have a test; a package's ``__init__.py`` holds no code."""
        return [file for file in self._found(self.rooms[room]) if not file.endswith("__init__.py")]

    def tests(self, source: str) -> list[str]:
        """The test files that a source file answers to.

        Raises:
            MirrorError: there is none.
        """
        path = PurePosixPath(source)
        # kernels/patchkit_kernels/ is one room with others in it; patchkit/ is the house.
        room = ("kernels", *path.parts[2:-1]) if path.parts[0] == "kernels" else path.parts[1:-1]
        patterns = [str(PurePosixPath("tests", *room, f"test_{path.stem}*.py"))]
        for extra in self.extras:
            if any(fnmatch(source, pattern) for pattern in extra.sources):
                patterns += extra.tests
        found = self._found(patterns)
        if not found:
            raise MirrorError(f"no test mirrors {source}; say in {DECLARED.name} which do")
        return found

    def text(self, source: str) -> str:
        """What a source file holds."""
        return (self.root / source).read_text("utf-8")

    def _found(self, patterns: list[str] | tuple[str, ...]) -> list[str]:
        files = (file for pattern in patterns for file in sorted(self.root.glob(pattern)))
        return list(dict.fromkeys(file.relative_to(self.root).as_posix() for file in files))


def read_mirror(root: Path, declared: Path = DECLARED) -> Mirror:
    """The declaration.

    Args:
        root: the repository's root.
        declared: the TOML file.
    """
    table = read_toml(declared)
    return Mirror(
        root,
        {room: tuple(patterns) for room, patterns in table["rooms"].items()},
        tuple(Extra(tuple(one["sources"]), tuple(one["tests"]), one["why"]) for one in table.get("extra", ())),
        tuple(table.get("preload", ())),
        tuple(table.get("arguments", ())),
        tuple(table.get("roots", (".",))),
    )
