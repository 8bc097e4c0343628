"""Widths of a table's columns on a terminal: words stay whole where there is room for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchkit.escaping import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text


def plain_table(title: str) -> Table:
    """A table with a title at its left and one line below its head: edges would take a fourth of 80 columns.

    Args:
        title: any text; it is made one line.
    """
    from rich import box
    from rich.table import Table

    return Table(title=one_line(title), title_justify="left", box=box.SIMPLE, padding=0, pad_edge=False)


def fitted(table: Table, console: Console) -> Table:
    """Set widths at which no word of a cell or a heading is cut, if such widths fit the console.

    rich narrows the widest columns first, also those that hold one long word. Here each column has at least the width
    of its longest word, and what room is left goes to the narrowest columns that still wrap.

    Args:
        table: complete; changed in place.
        console: where it is going to be printed.

    Returns:
        The table.
    """
    cells = [[_text(console, cell) for cell in (column.header, *column.cells)] for column in table.columns]
    natural = [max(cell.cell_len for cell in column) for column in cells]
    least = [max(max((_width(word) for word in cell.plain.split()), default=0) for cell in column) for column in cells]
    wide = console.options.update(width=10_000, max_width=10_000)
    around = table.__rich_measure__(console, wide).maximum - sum(natural)
    room = console.width - around
    if sum(natural) <= room or sum(least) > room:
        return table
    widths = list(least)
    for _ in range(room - sum(least)):
        column = min((one for one in range(len(widths)) if widths[one] < natural[one]), key=widths.__getitem__)
        widths[column] += 1
    for shown, width in zip(table.columns, widths, strict=True):
        shown.width = width
    return table


def _text(console: Console, cell: RenderableType) -> Text:
    from rich.text import Text

    return cell if isinstance(cell, Text) else console.render_str(str(cell))


def _width(word: str) -> int:
    from rich.cells import cell_len

    return cell_len(word)
