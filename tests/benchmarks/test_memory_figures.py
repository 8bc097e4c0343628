"""What the documentation says of memory is what was counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOKENS = 32_768

PAGE = (ROOT / "docs" / "memory.md").read_text()
FIGURES = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
COUNTED = {
    variant["name"]: variant
    for estimate in FIGURES["shapes"]["llama-8b"]
    if estimate["tokens"] == TOKENS
    for variant in estimate["variants"]
}


def rows():
    """The table of a llama-8B step: way to train, and three numbers in GiB as they are written."""
    table = PAGE.partition("of the llama-8B shape:\n\n")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row[0])
def test_a_row_is_what_was_counted(row):
    name = row[0].replace("plain PEFT", "plain").replace("`", "").replace('"', "")
    variant = COUNTED[name]
    counted = [variant[what] / 2**30 for what in ("bytes_kept", "host", "peak")]
    assert row[1:] == [f"{number:#.3g}".rstrip(".") if number else "" for number in counted]


def test_every_length_of_both_shapes_was_counted():
    assert FIGURES["shapes"].keys() == {"llama-8b", "gemma-3-1b"}
    for estimates in FIGURES["shapes"].values():
        assert [one["tokens"] for one in estimates] == [512 << power for power in range(9)]
        assert all({variant["name"] for variant in one["variants"]} == COUNTED.keys() for one in estimates)
