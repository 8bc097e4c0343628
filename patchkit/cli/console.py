"""The consoles that commands write to: text goes out as it is, without wrapping, markup or guessed colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console


@contextmanager
def own_output() -> Iterator[None]:
    """Keep standard output for the command: what other code writes to its file descriptor goes to standard error.

    That is a plugin's compiled code, a process that it starts, or what it does when the program ends; ``--json`` has to
    stay JSON. What it prints in Python while it loads goes there already, see :mod:`patchkit.arch.plugins`.
    """
    shared = sys.stdout
    try:
        if os.name == "nt" or shared.fileno() != 1:  # a console of Windows is written to in another way than a file
            raise ValueError
        shared.flush()
        own = os.dup(1)
        os.dup2(2, 1)
    except (AttributeError, OSError, ValueError):  # one of them is closed, or no file
        yield
        return
    sys.stdout = os.fdopen(own, "w", 1, encoding=shared.encoding, errors=shared.errors)
    try:
        yield
    finally:
        with suppress(OSError):  # who reads it has gone
            sys.stdout.flush()
        sys.stdout = shared  # which goes to standard error now


def output_console(*, colour: bool = True) -> Console:
    """Standard output; coloured only on a terminal, unless ``NO_COLOR`` is set or ``colour`` is false."""
    return Console(color_system="auto" if colour else None, highlight=False, markup=False, emoji=False, soft_wrap=True)


def error_console() -> Console:
    """Standard error, where a message stays on one line."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
