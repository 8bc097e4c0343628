"""The data in the page: of each cell what it shows, of each class where it stands, what it is and what proves it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contrast import AA, contrast, themes
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of

from patchkit.arch.registry import find
from patchkit.check.results import matrix_html
from patchkit.check.results.matrix import MEANINGS, SYMBOLS, make_matrix
from patchkit.check.results.matrix_html import to_html
from patchkit.check.results.torch_records import TorchRecord, TorchRecords
from patchkit.check.static.findings import findings_of
from patchkit.check.static.records import Records
from patchkit.trust.ledger import Key, Proof
from patchkit.upstream.release import Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

VERSIONS = {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.1.0", "python": "3.11.7"}
DROPOUT = SMALL_LLAMA.replace("self.act_fn(", "self.dropout(self.act_fn(").replace(") * self.up", ")) * self.up")
WITHOUT = SMALL_LLAMA[: SMALL_LLAMA.index("class LlamaMLP")]
EMPTY = "class LlamaMLP(nn.Module):\n    def forward(self, x):\n        return x\n"


def data_of(page: str) -> Any:
    """What the page's script is given."""
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def made(folder: Path, **texts: str) -> tuple[list[Release], Records]:
    """Releases 5.1.0, 5.2.0, ... with these texts of llama, each found on another day."""
    releases, records = [], Records()
    for number, text in enumerate(texts.values(), 1):
        release = folder_release(folder / str(number), f"5.{number}.0", {path_of("llama"): text})
        records = records.with_findings(findings_of(release, find("llama")), f"2026-01-0{number}")
        releases.append(release)
    return releases, records


def proofs_of(records: Records, *names: str) -> dict[Key, Proof]:
    keys = {record.key for record in records.entries if record.finding.class_name in names}
    return {key: Proof(key, "numeric", {}, {"eval": 1e-7}, VERSIONS, "2026-02-03") for key in keys}


def test_the_whole_page(tmp_path: Path) -> None:
    releases, records = made(tmp_path, first=SMALL_LLAMA, second=DROPOUT, third=WITHOUT)
    data = data_of(to_html(make_matrix(records, proofs_of(records, "LlamaAttention")), releases))
    assert data["releases"] == ["5.1.0", "5.2.0", "5.3.0"]
    assert data["dates"] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert data["legend"] == [[verdict, *SYMBOLS[verdict], MEANINGS[verdict]] for verdict in SYMBOLS]
    ((row),) = data["rows"]
    assert row["name"] == "llama"
    assert [cell["text"] for cell in row["cells"]] == ["●●○", "●●△", "●●✗"]
    assert [cell["parts"] for cell in row["cells"]] == [
        [["qkv", "rewritten", True], ["o", "rewritten", True], ["mlp", verdict, False]]
        for verdict in ("rewritten", "rewritten differently", "drifted")
    ]
    first, second, third = (cell["classes"] for cell in row["cells"])
    assert [[shown["name"] for shown in cell] for cell in (first, second, third)] == [
        ["LlamaAttention", "LlamaMLP"], ["LlamaAttention", "LlamaMLP"], ["LlamaAttention"],
    ]  # fmt: skip
    made_with = "2026-02-03, peft 0.21.2, python 3.11.7, torch 2.13.0, transformers 5.1.0"
    assert first[0] == {
        "name": "LlamaAttention",
        "where": f"{path_of('llama')}:1",
        "verdicts": [["qkv", "rewritten"], ["o", "rewritten"]],
        "reasons": [],
        "date": "2026-01-01",
        "proof": made_with,
        "source": first[0]["source"],
    }
    assert (first[1]["where"], first[1]["proof"], first[1]["date"]) == (f"{path_of('llama')}:9", "", "2026-01-01")
    assert second[1]["verdicts"] == [["mlp", "rewritten differently"]]
    assert "self.dropout" in "".join(second[1]["reasons"])
    assert second[1]["date"] == "2026-01-02"
    assert [cell[0]["proof"] for cell in (first, second, third)] == [made_with] * 3


def test_each_source_is_there_once(tmp_path: Path) -> None:
    """By what it holds and the block that it is of, as it was and as it is rewritten."""
    releases, records = made(tmp_path, first=SMALL_LLAMA, second=DROPOUT, third=SMALL_LLAMA)
    data = data_of(to_html(make_matrix(records, {}), releases))
    named = [[shown["source"] for shown in cell["classes"]] for cell in data["rows"][0]["cells"]]
    assert named[0] == named[2]
    assert named[0][0] == named[1][0]
    assert named[0][1] != named[1][1]
    assert set(data["sources"]) == {name for cell in named for name in cell}
    by_class = {(r.finding.release, r.finding.class_name): r.finding.source for r in records.entries}
    assert named[1][1] == f"{by_class['5.2.0', 'LlamaMLP'][:16]}-LlamaMLP"
    body = "        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
    assert data["sources"][named[0][1]] == [
        [" ", "    def forward(self, x):"], ["-", body], ["+", "        return self.apply_mlp(x)"],
    ]  # fmt: skip


READ = {
    # releases that can be read: what is there of the MLP's source in 5.1.0, of which 5.2.0 has the same
    "none": ((), None),
    "the first": ((0,), 3),
    "the second": ((1,), 3),
    "both": ((0, 1), 3),
}


@pytest.mark.parametrize("case", READ)
def test_of_which_releases_sources_are_read(case: str, tmp_path: Path) -> None:
    chosen, lines = READ[case]
    releases, records = made(tmp_path, first=SMALL_LLAMA, second=f"{SMALL_LLAMA}\n# more\n")
    data = data_of(to_html(make_matrix(records, {}), [releases[number] for number in chosen]))
    name = data["rows"][0]["cells"][0]["classes"][1]["source"]
    assert len(data["sources"].get(name, ())) == (lines or 0)
    assert (name in data["sources"]) == bool(chosen)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
def test_what_is_not_rewritten_is_shown_as_it_is(end: str, tmp_path: Path) -> None:
    release, records = made(tmp_path, first=WITHOUT + EMPTY)
    (place,) = tmp_path.rglob("modeling_llama.py")
    place.write_bytes((WITHOUT + EMPTY).replace("\n", end).encode())
    data = data_of(to_html(make_matrix(records, {}), release))
    (cell,) = data["rows"][0]["cells"]
    assert cell["text"] == "○○–"
    mlp = next(shown for shown in cell["classes"] if shown["name"] == "LlamaMLP")
    assert data["sources"][mlp["source"]] == [[" ", "    def forward(self, x):"], [" ", "        return x"]]


def test_a_source_that_cannot_be_rewritten_has_no_lines(tmp_path: Path) -> None:
    releases, records = made(tmp_path, first=SMALL_LLAMA)
    (place,) = tmp_path.rglob("modeling_llama.py")
    place.write_text("class Other: pass\n")
    data = data_of(to_html(make_matrix(records, {}), releases))
    assert set(map(len, data["sources"].values())) == {0}


def test_an_absent_model_has_no_classes(tmp_path: Path) -> None:
    """Also where the release has its file."""
    release, records = made(tmp_path, first=EMPTY)
    (cell,) = data_of(to_html(make_matrix(records, {}), release))["rows"][0]["cells"]
    assert cell == {"text": "–", "parts": [], "classes": []}
    assert records_of(release[0], "llama").entries


def test_what_was_rewritten_by_another_rewriter_is_not_proven(tmp_path: Path) -> None:
    releases, records = made(tmp_path, first=SMALL_LLAMA)
    proofs = proofs_of(records, "LlamaAttention", "LlamaMLP")
    old = Records([replace(record, rewrite=record.rewrite - 1) for record in records.entries])
    for given, proven in ((records, True), (old, False)):
        (cell,) = data_of(to_html(make_matrix(given, proofs), releases))["rows"][0]["cells"]
        assert {state for _, _, state in cell["parts"]} == {proven}
        assert {bool(shown["proof"]) for shown in cell["classes"]} == {proven}


def test_text_can_be_read_in_both_themes() -> None:
    """As WCAG asks of text, on every ground that a symbol or a word stands on."""
    template = (Path(matrix_html.__file__).with_name("matrix.html")).read_text("utf-8")
    for theme in themes(template):
        for text, grounds in {
            "text": ("ground", "head", "fused", "alone", "other", "upstream", "added", "removed"),
            "faint": ("ground", "head"),
            "link": ("ground",),
        }.items():
            for ground in grounds:
                assert contrast(theme[text], theme[ground]) >= AA, (text, ground)
        assert all(contrast("#fff", theme[ground]) >= AA for ground in ("proven", "drift"))


def test_the_page_has_a_main_part_and_every_button_a_type() -> None:
    template = (Path(matrix_html.__file__).with_name("matrix.html")).read_text("utf-8")
    assert (template.count("<main>"), template.count("</main>"), template.count("<h1>")) == (1, 1, 1)
    assert template.count("<button") == template.count('type="button"')
    assert template.count('element("button", {') == template.count('element("button", { type: "button"') > 1


def test_the_page_has_the_versions_of_torch() -> None:
    versions = {"transformers": "5.23.0", "torch": "2.14.0", "peft": "0.21.2", "python": "3.11.7"}
    record = TorchRecord("2.14.0", 12, ("llama",), 740, 12, 0, versions, "0", "2026-12-01")
    page = to_html(make_matrix(Records(), {}), [], torch=TorchRecords((record,)))
    data = data_of(page)["torch"]
    with_what = "transformers 5.23.0, PEFT 0.21.2, Python 3.11.7"
    assert data["rows"] == [["2.14.0", "11 of 12", "740", "12", "0", with_what, "2026-12-01"]]
    assert len(data["headings"]) == len(data["rows"][0])
    assert data["unproven"] == {"2.14.0": ["llama"]}
