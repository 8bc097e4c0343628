"""Files that ship with patchkit and hold one record a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from patchkit.errors import CacheError

Line = TypeVar("Line")


def read_lines(path: Path, parse: Callable[[str], Line]) -> Iterator[Line]:
    """What each line says, in order; nothing if there is no such file. Empty lines say nothing.

    Args:
        path: of the file, in UTF-8.
        parse: reads one line; it raises a ``ValueError`` for one that is damaged.

    Raises:
        CacheError: the file cannot be read, or a line is damaged; the line is named, and what to do.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise CacheError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                yield parse(line)
            except ValueError as error:
                raise CacheError(
                    f"{path}:{number} is damaged: {error}; restore the file, or delete the line"
                ) from error
