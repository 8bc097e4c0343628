"""What the documentation says of memory is what was counted."""

from __future__ import annotations

import json
import re
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


README_TOKENS = 4096
OF_README = {
    variant["name"]: variant
    for estimate in FIGURES["shapes"]["llama-8b"]
    if estimate["tokens"] == README_TOKENS
    for variant in estimate["variants"]
}


def rows_of_the_readme():
    """A row's name as a variant has it, and the three numbers as they are written."""
    table = (ROOT / "README.md").read_text().partition("## What it saves\n\n")[2].split("\n\n")[1]
    for line in table.splitlines()[2:]:
        first, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        options = ", ".join(re.findall(r'\w+=[\w"]+', first)).replace('"', "")
        name = "plain" if first.startswith("plain PEFT") else "patched" + f", {options}" * bool(options)
        yield pytest.param(name + ", checkpointed" * ("checkpointing" in first), numbers, id=name)


def test_the_readme_has_plain_and_patched():
    names = [one.values[0] for one in rows_of_the_readme()]
    assert len(set(names)) == len(names) == 6
    assert {"plain", "patched"} <= set(names)


@pytest.mark.parametrize(("name", "numbers"), list(rows_of_the_readme()))
def test_a_row_of_the_readme_is_what_was_counted(name, numbers):
    counted = OF_README[name]
    sizes = [f"{counted[what] / 2**30:#.3g}" for what in ("bytes_kept", "peak")]
    work = counted["flops"] / OF_README["plain"]["flops"]
    assert numbers == [*sizes, "1" if name == "plain" else f"{work:.2f}"]
