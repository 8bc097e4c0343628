"""``--option NAME=VALUE`` of commands: an option of ``patchkit.apply``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from patchkit.cli.console import error_console

ApplyOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of patchkit.apply; repeatable."),
]


def apply_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """Options of ``patchkit.apply`` by name; what is no true or false stays text, and ``apply`` knows it or not.

    Raises:
        typer.Exit: one has no value.
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            error_console().print(f"patchkit: error: --option {text!r} has no value; write {text}=true, for instance")
            raise typer.Exit(2)
        found[name.strip()] = {"true": True, "false": False}.get(value.strip().lower(), value.strip())
    return found
