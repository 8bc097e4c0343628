"""The tables of ``patchkit bench --host``: microseconds of the host for each block of a layer, and for whole steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from patchkit.cli.console import output_console
from patchkit.cli.fitting import fitted

if TYPE_CHECKING:
    from rich.table import Table

    from patchkit.testing.block_costs import HostTime
    from patchkit.testing.step_times import StepTime


def print_host_times(found: Iterable[HostTime]) -> None:
    """A row for each precision, with and without dropout, and a column for each block and for the layer."""
    from rich.table import Table

    from patchkit.testing.block_costs import TIMED_PARTS

    table = Table(title="host µs of forward and backward, plain PEFT → patched (ratio)", title_justify="left")
    table.add_column("precision")
    for heading in ("dropout", *TIMED_PARTS):
        table.add_column(heading, justify="right")
    rows: defaultdict[tuple[str, float], dict[str, tuple[float, float]]] = defaultdict(dict)
    for one in found:
        rows[one.precision, one.dropout][one.part] = one.plain, one.patched
    for (precision, dropout), parts in rows.items():
        table.add_row(precision, f"{dropout:g}", *[_cell(*parts[part]) for part in TIMED_PARTS])
    _print(table)


def print_step_times(found: Iterable[StepTime]) -> None:
    """A row for each precision, with and without dropout, and a column for each size of model and batch."""
    from rich.table import Table

    from patchkit.testing.step_times import LAYERS, SIZES

    title = f"ms of a training step of {LAYERS} layers, plain PEFT → patched (ratio ± half its quartiles' distance)"
    table = Table(title=title, title_justify="left")
    table.add_column("precision")
    for heading in ("dropout", *[f"{hidden} wide, {tokens} tokens" for hidden, tokens in SIZES]):
        table.add_column(heading, justify="right")
    rows: defaultdict[tuple[str, float], dict[tuple[int, int], str]] = defaultdict(dict)
    for one in found:
        ratio = f"({one.patched / one.plain:.2f} ± {one.spread:.2f})"
        cell = f"{one.plain / 1000:.1f} → {one.patched / 1000:.1f} {ratio}"
        rows[one.precision, one.dropout][one.hidden, one.tokens] = cell
    for (precision, dropout), cells in rows.items():
        table.add_row(precision, f"{dropout:g}", *[cells.get(size, "") for size in SIZES])
    _print(table)


def _print(table: Table) -> None:
    console = output_console()
    if not console.is_terminal:
        console.width = 160  # a file has no width of its own
    console.print(fitted(table, console))


def _cell(plain: float, patched: float) -> str:
    return f"{plain:.0f} → {patched:.0f} ({patched / plain:.2f})"
