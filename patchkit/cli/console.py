"""The consoles that commands write to: text goes out as it is, without wrapping, markup or guessed colours.

Much of it was written by others (see :mod:`patchkit.escaping`), so every string that is printed, also as the cell of a
table, is made visible here: print strings, with ``style=`` where they have one, and no ``Text`` of what others wrote.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from patchkit.escaping import visible, without_commands


class SafeConsole(Console):
    """A console on which no text is obeyed: not by the terminal, and in a workflow of GitHub not by its runner.

    Attributes:
        in_workflow: whether what is printed is the log of a workflow.
    """

    def __init__(self, *, in_workflow: bool, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)
        self.in_workflow = in_workflow

    def render_str(self, text: str, **options: Any) -> Text:
        """Whatever is printed as a string passes here before it is measured; also what the encoding lacks is shown."""
        shown = visible(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(shown, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does; in a workflow, the lines that come of it are no commands."""
        if not self.in_workflow:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write(without_commands(captured.get()))
        self.file.flush()

    def command(self, line: str) -> None:
        """Send a command to GitHub's runner, see :func:`patchkit.escaping.workflow_command`."""
        self.file.write(f"{line}\n")
        self.file.flush()


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


def output_console(*, colour: bool = True, github: bool = False) -> SafeConsole:
    """Standard output; coloured only on a terminal, unless ``NO_COLOR`` is set or ``colour`` is false.

    Args:
        colour: whether there may be colours.
        github: whether it is the log of a workflow; so it is where ``GITHUB_ACTIONS`` is set.
    """
    in_workflow = github or bool(os.environ.get("GITHUB_ACTIONS"))
    return SafeConsole(in_workflow=in_workflow, color_system="auto" if colour else None)


def error_console() -> SafeConsole:
    """Standard error, where a message stays on one line. It is always taken for the log of a workflow."""
    return SafeConsole(in_workflow=True, stderr=True)
