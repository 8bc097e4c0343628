"""The table of every model: its file, its families, and what each was before."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of

from patchkit.check.results.matrix import make_matrix, to_markdown
from patchkit.check.results.matrix_html import to_html
from patchkit.check.results.models import OTHERS, Models, family_of, models_section
from patchkit.check.static.models import ClassInBrief, ModelInBrief, models_of
from patchkit.check.static.records import Records
from patchkit.errors import CacheError


def of(model: str, cell: str) -> ModelInBrief:
    parts = {part: symbol for part, symbol in zip(("qkv", "o", "mlp"), cell, strict=True) if symbol != "·"}
    return ModelInBrief(model, (ClassInBrief("A", parts),) if parts else ())  # type: ignore[arg-type]


def table(**releases: str) -> Models:
    """``v5_1="qwen2 ○○○, bert ○··"`` is release 5.1 with these models."""
    models = Models()
    for name, said in releases.items():
        found = [of(*one.split()) for one in said.split(", ") if one]
        models = models.with_release(name[1:].replace("_", "."), found)
    return models


THREE = table(
    v5_10="qwen2 ○○○, qwen3 ○○◇, bert ○··, t5 ··○", v5_2="qwen2 ○○○, bert ○··", v4_57="qwen2 ◇○○, roberta ···, bert ○··"
)


def rows(models: Models) -> dict[str, list[str]]:
    lines = [line for line in models_section(models) if line.startswith("| ")]
    return {
        line.split(" | ")[0].strip("| "): [cell.strip() for cell in line.strip("|").split("|")[1:]] for line in lines
    }


def test_releases_are_in_their_order_and_models_by_name() -> None:
    assert THREE.releases == ("4.57", "5.2", "5.10")
    assert list(THREE.cells) == ["bert", "qwen2", "qwen3", "roberta", "t5"]


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "compat_models.jsonl"
    path.write_text(THREE.to_text(), encoding="utf-8")
    again = Models.load(path)
    assert ({name: dict(own) for name, own in again.cells.items()}, again.releases) == (THREE.cells, THREE.releases)
    assert again.to_text() == THREE.to_text()
    lines = [json.loads(line) for line in THREE.to_text().splitlines()]
    assert {"model": "qwen2", "cell": "○○○", "releases": ["5.2", "5.10"]} in lines
    assert [(line["model"], line["cell"]) for line in lines] == sorted((line["model"], line["cell"]) for line in lines)
    assert Models.load(tmp_path / "none") == Models()


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "1", '{"model": "a", "cell": "○○○"}', '{"model": "a", "cell": "xyz", "releases": ["5.1"]}',
     '{"model": 1, "cell": "○○○", "releases": ["5.1"]}', '{"model": "a", "cell": "○○○○", "releases": []}',
     '{"model": "a", "cell": "○○○", "releases": ["<b>"]}'],
)  # fmt: skip
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "compat_models.jsonl"
    path.write_text(f"{THREE.to_text()}{line}\n", encoding="utf-8")
    number = len(THREE.to_text().splitlines()) + 1
    with pytest.raises(CacheError, match=re.escape(f"compat_models.jsonl:{number} is damaged")):
        Models.load(path)


def test_a_release_is_renewed() -> None:
    renewed = THREE.with_release("5.10", [of("qwen2", "○○?")])
    assert renewed.cells["qwen2"] == {"4.57": "◇○○", "5.2": "○○○", "5.10": "○○?"}
    assert "qwen3" not in renewed.cells
    assert renewed.releases == THREE.releases


@pytest.mark.parametrize(
    ("model", "family"), [("qwen2_5_vl", "qwen"), ("Qwen3", "qwen"), ("gemma3n", "gemma"), ("t5", "t"), ("7b", "7b")]
)
def test_families(model: str, family: str) -> None:
    assert family_of(model) == family


def test_families_of_several_come_first() -> None:
    assert THREE.families() == {"qwen": ["qwen2", "qwen3"], OTHERS: ["bert", "roberta", "t5"]}


def test_what_a_model_is_and_was() -> None:
    found = rows(THREE)
    assert found["qwen2"] == ["○○○", "5.2", "◇○○ 4.57"]
    assert found["qwen3"] == ["○○◇", "5.10", ""]
    assert found["bert"] == ["○··", "4.57", ""]
    assert found["roberta"] == ["–", "", "··· 4.57"], "it is gone"
    assert found["qwen"] == ["2", "2 of 2", "2 of 2", "1 of 2"]
    assert found["others"] == ["2", "1 of 1", "", "1 of 1"]


def test_a_model_that_was_away_for_a_time() -> None:
    found = rows(table(v1="a ○○○", v2="a ○○○, b ···", v3="b ···", v4="a ○○○, b ···", v5="a ···, b ···"))
    assert found["a"] == ["···", "5", "○○○ 4; ○○○ 1 to 2"]


def test_without_models_there_is_no_section() -> None:
    matrix = make_matrix(Records(), {})
    assert models_section(Models()) == []
    assert to_markdown(matrix, Models()) == to_markdown(matrix)
    assert to_markdown(matrix, THREE).startswith(to_markdown(matrix))


def test_names_of_others_are_text() -> None:
    hostile = Models().with_release("5.1", [of("<script>|`x`", "○○○")])
    html = MarkdownIt("commonmark").enable("table").render("\n".join(models_section(hostile)))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def data_of(page: str) -> Any:
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])["models"]


@pytest.mark.usefixtures("own_cache")
def test_the_page_has_each_model_once_and_what_is_behind_its_cells(tmp_path: Path) -> None:
    one = folder_release(
        tmp_path / "1",
        "5.1.0",
        {path_of("llama"): SMALL_LLAMA, path_of("llama").replace("llama", "llama2"): SMALL_LLAMA},
    )
    two = folder_release(tmp_path / "2", "5.2.0", {path_of("llama"): SMALL_LLAMA})
    briefs = {release.version: models_of(release) for release in (one, two)}
    models = Models()
    for release, found in briefs.items():
        models = models.with_release(release, found)
    models = models.with_release("5.0.0", [of("llama", "◇○○")])
    data = data_of(to_html(make_matrix(records_of(two, "llama"), {}), [two], models, briefs))
    assert data["releases"] == ["5.0.0", "5.1.0", "5.2.0"]
    ((family),) = data["families"]
    assert family["name"] == "llama"
    assert family["models"] == [
        {"name": "llama", "cells": ["◇○○", "○○○", "○○○"], "details": [-1, 0, 0]},
        {"name": "llama2", "cells": ["", "○○○", ""], "details": [-1, 0, -1]},
    ]
    (((classes, others)),) = data["details"]
    assert [name for name, _, _ in classes] == ["LlamaAttention", "LlamaMLP"]
    assert others == 0
    assert [symbol for symbol, _ in data["legend"]] == ["○", "◇", "?", "·"]


def test_a_page_without_models_has_none() -> None:
    data = data_of(to_html(make_matrix(Records(), {}), []))
    assert (data["releases"], data["families"], data["details"]) == ([], [], [])
