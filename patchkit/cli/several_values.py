"""A command whose repeatable options take several values at once: ``--rank 8 16`` is ``--rank 8 --rank 16``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand


class SeveralValues(TyperCommand):
    """For commands without arguments of their own: what follows such an option belongs to it, up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click does, after the option was put before each of its values."""
        names = {name for one in self.params if getattr(one, "multiple", False) for name in one.opts}
        return super().parse_args(ctx, list(_repeated(args, names)))


def _repeated(words: Sequence[str], names: set[str]) -> Iterator[str]:
    option = ""
    before: Any = None
    for word in words:
        if word.startswith("-"):
            option = word if word in names else ""
        elif option and before != option:
            yield option
        yield word
        before = word
