"""The consoles that commands write to: text goes out as it is, without wrapping, markup or guessed colours."""

from __future__ import annotations

from rich.console import Console


def output_console(*, colour: bool = True) -> Console:
    """Standard output; coloured only on a terminal, unless ``NO_COLOR`` is set or ``colour`` is false."""
    return Console(color_system="auto" if colour else None, highlight=False, markup=False, emoji=False, soft_wrap=True)


def error_console() -> Console:
    """Standard error, where a message stays on one line."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
