"""Tables on a terminal of 80 columns: no word is cut where there is room for it."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from patchkit.cli.console import SafeConsole
from patchkit.cli.fitting import fitted, plain_table

HEADINGS = ("architecture", "class", "part", "verdict", "rule", "compared with", "proof")
ROWS = [
    ("llama", "LlamaAttention", "qkv", "rewritten", "qkv-together", "5.22.2", "numeric"),
    ("", "LlamaMLP", "mlp", "rewritten differently", "gated-mlp", "5.22.2", "numeric"),
    ("pixtral", "PixtralAttention (vision)", "o", "rewritten", "output-call", "5.22.2", "numeric"),
]


def printed(width: int, table: Table, *, fit: bool = True) -> list[str]:
    console = SafeConsole(in_workflow=False, file=StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(fitted(table, console) if fit else table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def table(rows: list[tuple[str, ...]] = ROWS) -> Table:
    made = plain_table("source")
    for heading in HEADINGS:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


@pytest.mark.parametrize("width", [80, 84, 100, 160])
def test_no_word_is_cut(width):
    lines = printed(width, table())
    assert max(map(len, lines)) <= width
    assert {word for text in (*HEADINGS, *ROWS[0], *ROWS[1], *ROWS[2]) for word in text.split()} <= words(lines)


def test_rich_alone_cuts_them():
    """Or nothing here is needed."""
    assert "PixtralAttention" not in words(printed(80, table(), fit=False))


def test_room_is_used():
    """A cell is wrapped only where it has to be."""
    wide = "\n".join(printed(100, table()))
    assert "rewritten differently" in wide
    assert "compared with" in wide
    assert "PixtralAttention (vision)" in "\n".join(printed(104, table()))
    assert max(map(len, printed(80, table()))) == 80


def test_where_even_single_words_do_not_fit_nothing_is_lost():
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(overflow="fold")
    made.add_row("Qwen2_5_VLVisionAttention")
    assert "".join(line.strip() for line in printed(12, made)) == "Qwen2_5_VLVisionAttention"
    assert max(map(len, printed(40, table()))) <= 40


def test_cells_with_a_style_count_as_what_is_seen():
    made = Table(box=None, pad_edge=False)
    made.add_column("verdict")
    made.add_column("why", overflow="fold")
    made.add_row(Text("rewritten differently", style="bold red"), "another rule than in the release before this one")
    assert {"differently", "another", "release"} <= words(printed(30, made))


def test_a_table_without_rows():
    assert fitted(table([]), Console(width=80)).row_count == 0
