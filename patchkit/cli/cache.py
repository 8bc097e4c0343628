"""``patchkit cache``: what the cache directory holds, and clearing it."""

from __future__ import annotations

from typing import Annotated

import typer

from patchkit.cli.console import output_console


def cache(
    clear: Annotated[
        str | None,
        typer.Option("--clear", metavar="ENTRY", help="Delete what patchkit wrote there; 'all': all of it."),
    ] = None,
) -> None:
    """Show what the cache directory holds: releases, outcomes, environments, proofs, and what `patchkit tune` found.

    All of it can be made again. It is the platform's cache directory, unless the variable PATCHKIT_CACHE names another.
    """
    import datetime

    from rich.table import Table

    from patchkit.cache.contents import clear as clear_cache
    from patchkit.cache.contents import entries
    from patchkit.cache.storage import cache_directory

    console = output_console()
    if clear:
        cleared = clear_cache(None if clear == "all" else clear)
        console.print(f"deleted {cleared.size / 2**20:.1f} MiB from {cache_directory()}")
        for path in cleared.left:
            console.print(f"left alone, because patchkit did not make it or is making it: {path}")
        return
    table = Table(title=str(cache_directory()), title_justify="left")
    for heading, justify in (
        ("entry", "left"),
        ("files", "right"),
        ("MiB", "right"),
        ("limit", "right"),
        ("used", "left"),
    ):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    for entry in entries():
        limit = f"{entry.limit / 2**20:.0f}" if entry.limit else ""
        used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M") if entry.used else ""
        table.add_row(entry.name, str(entry.files), f"{entry.size / 2**20:.1f}", limit, used)
    console.print(table)
