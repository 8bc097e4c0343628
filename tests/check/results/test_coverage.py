"""``coverage.md``: sorted, whole, and text of others in it is shown as it is."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from patchkit.check.numeric.model_types import STATES, TypeOutcome
from patchkit.check.results.coverage import coverage_text

FOUND = [
    TypeOutcome("bert", "encoder", "verified", "", "B", 6, 7, 0, ("A qkv",), "float32", 5e-7, 1.0),
    TypeOutcome(
        "llama",
        "causal",
        "verified",
        "",
        "L",
        14,
        0,
        0,
        ("C mlp", "D o"),
        "float32",
        3e-7,
        1.0,
        (
            "transformers.models.l.modeling_l.D: Attention(): o qkv",
            "transformers.models.l.modeling_l.C: MLP(up='a'): mlp",
        ),
    ),
    TypeOutcome("blt", "causal", "verified", "X.gate: no reader", "M", 0, 3, 1, (), "float64", 1e-15, 1.0),
    TypeOutcome("dbrx", "causal", "not built", "<script>|`it`"),
    TypeOutcome("llama4", "causal", "not run", "plain PEFT fails"),
]
VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0"}


def rows(text, heading):
    """The cells of the table below a heading."""
    lines = text.split(f"\n{heading}\n", 1)[1].split("\n## ")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_every_type_has_a_row_with_what_was_found():
    text = coverage_text(FOUND, VERSIONS)
    assert text.startswith("# Model types of transformers 5")
    assert [row[0] for row in rows(text, "## causal: verified")] == ["blt", "llama"]
    assert rows(text, "## causal: verified")[0] == ["blt", "0", "3", "1", "", "X.gate: no reader"]
    assert rows(text, "## causal: verified")[1] == ["llama", "14", "0", "0", "C mlp, D o", ""]
    assert [row[:2] for row in rows(text, "## causal: not verified")] == [["dbrx", "not built"], ["llama4", "not run"]]
    assert "## encoder: not verified" not in text


def test_each_class_has_a_row_with_its_description_and_where_it_was_proven():
    others = [replace(FOUND[1], model_type=f"like_llama_{index}") for index in range(6)]
    left = replace(FOUND[1], state="different", classes=("transformers.models.l.modeling_l.E: MLP(): mlp",))
    text = coverage_text([*FOUND, *others, left], VERSIONS)
    first = "like_llama_0, like_llama_1, like_llama_2, like_llama_3, like_llama_4, ..."
    assert rows(text, "## Classes") == [
        ["l.modeling_l.C", "MLP(up='a')", "mlp", first],
        ["l.modeling_l.D", "Attention()", "o qkv", first],
    ]
    assert "## Classes" not in coverage_text([FOUND[0], left], VERSIONS)


def test_nothing_in_it_differs_between_machines():
    slower = [replace(one, error=one.error * 3, seconds=9.0, judged_in="float64") for one in FOUND]
    assert coverage_text(slower, VERSIONS) == coverage_text(FOUND, VERSIONS)


def test_sums():
    text = coverage_text(FOUND, VERSIONS)
    table = [line for line in text.splitlines() if line.startswith(("| causal", "| encoder", "| all", "| | types"))]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells == [
        ["", "types", "verified", "not run", "not built", "adapted layers", "in blocks", "alone", "upstream"],
        ["causal", "4", "2", "1", "1", "18", "14 (77.8 %)", "3 (16.7 %)", "1 (5.6 %)"],
        ["encoder", "1", "1", "0", "0", "13", "6 (46.2 %)", "7 (53.8 %)", "0 (0.0 %)"],
        ["all", "5", "3", "1", "1", "31", "20 (64.5 %)", "10 (32.3 %)", "1 (3.2 %)"],
    ]


def test_without_layers_there_is_no_share():
    assert "| causal | 1 | 1 | 0 | 0 | 0 | 0 |" in coverage_text([FOUND[3]], VERSIONS)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_outcomes_does_not_matter(seed):
    shuffled = random.Random(seed).sample(FOUND, len(FOUND))
    assert coverage_text(shuffled, dict(reversed(VERSIONS.items()))) == coverage_text(FOUND, VERSIONS)


def test_text_of_others_is_text():
    html = MarkdownIt("commonmark").enable("table").render(coverage_text(FOUND, VERSIONS))
    assert "<script>" not in html
    assert "&lt;script&gt;|`it`" in html


@pytest.mark.parametrize(
    "outcomes", [FOUND, FOUND[:1], [TypeOutcome("x", "causal", state) for state in STATES]], ids=len
)
def test_each_table_is_one(outcomes):
    """A line under the heading has as many columns as the heading, and so has every row."""
    text = coverage_text(outcomes, VERSIONS)
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") == sum(line.startswith("|---") for line in text.splitlines()) > 0
    widths = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")]
    tables = "".join("|" if line.startswith("|") else " " for line in text.splitlines()).split()
    for table in tables:
        assert len(set(widths[: len(table)])) == 1
        widths = widths[len(table) :]


def test_each_state_is_explained():
    text = coverage_text([TypeOutcome("x", "causal", state) for state in STATES], VERSIONS)
    assert all(f"* **{state}**: " in text for state in STATES)


def test_the_committed_one_holds_what_is_claimed():
    """It is made by ``patchkit scan``, which takes minutes; here it is only read."""
    text = (Path(__file__).parents[3] / "coverage.md").read_text(encoding="utf-8")
    assert "different" not in {
        row[1] for head in ("causal", "image-text") for row in rows(text, f"## {head}: not verified")
    }
    assert len(rows(text, "## causal: verified")) >= 175
    assert len(rows(text, "## image-text: verified")) >= 85
    assert len(rows(text, "## Classes")) > 300
