"""The tables of ``patchkit bench --contenders``, for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from patchkit.cli.console import output_console

if TYPE_CHECKING:
    from rich.table import Table

    from patchkit.testing.contenders.results import CellResult, Result, Spread

WIDTH = 80
_NONE = "-"


def print_cells(found: Sequence[CellResult], *, host: bool, modelled: bool) -> None:
    """Two tables for each cell: what was measured, with what was modelled beside it, and what was counted.

    Args:
        found: the cells.
        host: whether the host's time was measured.
        modelled: whether there are rates to model with.
    """
    for one in found:
        _print_cell(one, host=host, modelled=modelled)
    said = [
        "forward, backward, step: milliseconds, medians of all rounds. +-: half of the",
        "distance of the quartiles of a step. x: a step over plain PEFT's.",
        "Counted figures are the same on every machine. Peaks are beyond weights and",
        "inputs; gradients are included.",
    ]
    if modelled:
        said.append("modelled: a roofline over the traced operations, and no measurement.")
    if host:
        said.append("host us: microseconds for the blocks of one layer on tiny tensors, measured.")
    for line in said:
        output_console().print(line)


def _print_cell(found: CellResult, *, host: bool, modelled: bool) -> None:
    console = output_console()
    if not console.is_terminal:
        console.width = WIDTH  # a file has no width of its own
    for line in textwrap.wrap(found.cell.title, WIDTH):
        console.print(line)
    ran = [one for one in found.results if one.step_ms is not None]
    peaks = any(one.measured_peak_bytes is not None for one in ran)
    if ran:
        headings = ["forward", "backward", "step", "+-", "x", "tokens/s", *["peak MiB"] * peaks]
        rows = [_measured(found, one, peaks=peaks, modelled=modelled) for one in ran]
        title = f"measured, {found.rounds} round{'s' * (found.rounds != 1)}"
        console.print(_table(title, [*headings, *["modelled"] * modelled], rows))
    counted = [one for one in found.results if (one.counts, one.launches, one.host_us) != (None, None, None)]
    if counted:
        modelled = modelled and not ran
        headings = ["kept MiB", "peak MiB", "GFLOP", "moved MiB", "ops", "launches", *["host us"] * host]
        rows = [_counted(one, host=host, modelled=modelled) for one in counted]
        console.print(_table("counted", [*headings, *["modelled"] * modelled], rows))
    for what, reasons in (("run", _by("not_run", found)), ("counted", _by("not_counted", found))):
        for reason, names in reasons.items():
            console.print(f"not {what}: {', '.join(names)}: {reason}")
    for one in found.results:
        if set(one.levels) - {"fused"}:
            levels = ", ".join(f"{number} {level}" for level, number in one.levels.items())
            console.print(f"{one.contender} runs parts of the layers unfused: {levels}")
    console.print("")


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=0, pad_edge=False)
    table.add_column("contender", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _by(field: str, found: CellResult) -> dict[str, list[str]]:
    """Contenders by the reason that this field of their records gives."""
    names: dict[str, list[str]] = {}
    for one in found.results:
        if reason := getattr(one, field):
            names.setdefault(reason, []).append(one.contender)
    return names


def _measured(found: CellResult, one: Result, *, peaks: bool, modelled: bool) -> list[str]:
    assert one.forward_ms is not None
    assert one.backward_ms is not None
    assert one.step_ms is not None
    plain = found.of("peft")
    over = "" if plain is None or plain.step_ms is None else f"{one.step_ms.median / plain.step_ms.median:.2f}"
    cells = [one.contender, _number(one.forward_ms.median), _number(one.backward_ms.median)]
    cells += [_number(one.step_ms.median), _around(one.step_ms), over]
    cells += [_short(found.cell.tokens / one.step_ms.median * 1e3), *[_mib(one.measured_peak_bytes)] * peaks]
    return [*cells, *[_NONE if one.modelled_ms is None else _number(one.modelled_ms)] * modelled]


def _counted(one: Result, *, host: bool, modelled: bool) -> list[str]:
    cells = [one.contender, *[_NONE] * 5]
    if (counts := one.counts) is not None:
        kept, peak, moved = (_mib(counts[name]) for name in ("bytes_kept", "peak_bytes", "bytes_moved"))
        cells[1:] = [kept, peak, _number(counts["flops"] / 1e9), moved, str(counts["operations"])]
    cells += [_NONE if one.launches is None else str(one.launches)]
    cells += [_NONE if one.host_us is None else f"{one.host_us:.0f}"] * host
    return [*cells, *[_NONE if one.modelled_ms is None else _number(one.modelled_ms)] * modelled]


def _number(value: float) -> str:
    """Three digits or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _around(one: Spread) -> str:
    share = (one.upper - one.lower) / 2 / one.median
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:#.3g}".rstrip(".") + unit
    return f"{value:#.3g}"


def _mib(size: int | None) -> str:
    return _NONE if size is None else _number(size / 2**20)
