"""PEFT's layers in the page of the matrix: what its script is given, and what Chromium makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_matrix_page import in_browser
from test_peft_matrix import EMPTY, NEW, OLD, RECORDS, matrix

from patchkit.adapters.peft_sources import READERS
from patchkit.check.results.matrix import make_matrix
from patchkit.check.results.matrix_html import to_html
from patchkit.check.results.peft_matrix import LAYERS, PEFT_MEANINGS, PEFT_SYMBOLS, PeftMatrix
from patchkit.check.results.peft_page import peft_data
from patchkit.check.static.peft_layers import ReaderRecords
from patchkit.check.static.records import Records


def cells(data: dict[str, Any], reader: str) -> list[dict[str, Any]]:
    (found,) = (layer["cells"] for layer in data["layers"] if layer["name"] == reader)
    return list(found)


def test_rows_are_the_readers_and_cells_the_releases():
    data = peft_data(matrix(OLD))
    assert data["releases"] == ["0.19.0", "0.20.0"]
    assert [(layer["name"], layer["what"]) for layer in data["layers"]] == [(name, LAYERS[name]) for name in READERS]
    assert {len(layer["cells"]) for layer in data["layers"]} == {2}
    assert data["legend"] == [[state, symbol, PEFT_MEANINGS[state]] for state, symbol in PEFT_SYMBOLS.items()]


def test_a_cell_is_its_state_its_proof_and_what_changed():
    old, new = cells(peft_data(matrix(OLD)), "Linear")
    made_with = "2026-02-03, peft 0.20.0, python 3.11.7, torch 2.13.0, transformers 5.23.0"
    assert old == {
        "state": "proven", "date": "2026-01-02", "text": f"Linear {OLD.source[:16]}", "since": "", "changed": [],
        "proof": made_with, "cases": 1, "worst": 1e-15,
    }  # fmt: skip
    assert new == {
        "state": "unproven", "date": "2026-01-02", "text": f"Linear {NEW.source[:16]}", "since": "0.19.0",
        "changed": ["b", "c"], "proof": "", "cases": 0, "worst": 0.0,
    }  # fmt: skip


def test_what_is_absent_or_not_recorded():
    data = peft_data(matrix())
    assert not EMPTY.source
    gone = cells(data, "ParamWrapper")[1]
    assert (gone["state"], gone["text"], gone["changed"], gone["since"]) == ("absent", "", ["a"], "0.19.0")
    nothing = cells(data, "Embedding")[0]
    assert (nothing["state"], nothing["date"], nothing["text"], nothing["proof"]) == ("", "", "", "")


def test_each_text_is_there_once():
    assert peft_data(matrix())["texts"] == {
        f"Linear {OLD.source[:16]}": ["a", "b"],
        f"Linear {NEW.source[:16]}": ["a", "b", "c"],
        next(key for key in peft_data(matrix())["texts"] if key.startswith("ParamWrapper")): ["a"],
    }


def test_without_records_there_are_no_rows():
    data = peft_data(PeftMatrix(ReaderRecords(), {}))
    assert (data["releases"], data["layers"], data["texts"]) == ([], [], {})


def page(peft: PeftMatrix | None) -> str:
    return to_html(make_matrix(Records(), {}), [], None, None, peft)


def test_the_page_holds_them():
    text = page(matrix(OLD)).partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(text)["peft"] == peft_data(matrix(OLD))


SHOWN = """
const found = {};
found.hidden = document.getElementById("layers").hidden;
found.links = [...document.querySelectorAll("#sections a")].map((link) => link.textContent);
found.targets = [...document.querySelectorAll("#sections a")].map((link) => document.querySelector(link.getAttribute("href")).textContent);
if (!found.hidden) {
  found.head = [...document.querySelectorAll("#peft-head th")].map((one) => one.textContent);
  const row = document.querySelector("#peft-body tr");
  found.row = [...row.cells].map((one) => one.textContent);
  found.said = [...row.querySelectorAll("button")].map((one) => one.getAttribute("aria-label"));
  found.colours = [...row.querySelectorAll("td span")].map((one) => getComputedStyle(one).backgroundColor);
  const first = document.querySelector('#peft button[tabindex="0"]');
  first.focus();
  first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  found.focused = document.activeElement.getAttribute("aria-label");
  document.activeElement.click();
  const dialog = document.getElementById("dialog");
  found.old = [dialog.open, document.getElementById("title").textContent, document.getElementById("content").innerText];
  dialog.close();
  row.querySelector("button").click();
  found.new = document.getElementById("content").innerText;
  dialog.close();
  document.querySelectorAll("#peft-body tr")[2].querySelector("button").click();
  found.empty = dialog.open;
  found.table = document.getElementById("peft").getAttribute("aria-labelledby");
}
"""


@pytest.mark.browser
def test_the_table_in_a_browser(tmp_path: Path):
    found = in_browser(page(matrix(OLD)), SHOWN, tmp_path)
    assert found["hidden"] is False
    assert found["links"] == found["targets"] == ["Architectures", "PEFT's layers"]
    assert found["head"] == ["layer", "0.20.0", "0.19.0"]
    assert found["row"] == ["LinearLoRA on a linear layer", "○ ∗", "●"]
    assert found["said"] == ["Linear, PEFT 0.20.0: unproven, changed since 0.19.0", "Linear, PEFT 0.19.0: proven"]
    assert len(set(found["colours"])) == 2
    assert found["focused"] == "Linear, PEFT 0.19.0: proven"
    opened, title, text = found["old"]
    assert (opened, title) == (True, "Linear, PEFT 0.19.0")
    assert "1 checks, largest relative error 1.0e-15" in text
    assert "What it relies on (2):" in text
    assert "changed since 0.19.0: b, c" in found["new"]
    assert PEFT_MEANINGS["unproven"] in found["new"]
    assert found["empty"] is False, "what is not recorded has nothing to open"
    assert found["table"] == "of-peft"


@pytest.mark.browser
def test_without_records_there_is_no_table(tmp_path: Path):
    found = in_browser(page(None), SHOWN, tmp_path)
    assert (found["hidden"], found["links"]) == (True, ["Architectures"])


SCROLLED = """
const found = [];
for (const width of [200, 4000]) {
  const map = document.querySelector("#peft").closest(".map");
  map.style.width = `${width}px`;
  shade(map);
  found.push(map.parentElement.classList.contains("more"));
}
const map = document.querySelector("#peft").closest(".map");
map.style.width = "200px";
map.scrollLeft = 10000;
shade(map);
found.push(map.parentElement.classList.contains("more"));
"""


@pytest.mark.browser
def test_a_shade_says_that_a_table_goes_on(tmp_path: Path):
    wide = ReaderRecords(tuple(RECORDS.entries))
    assert in_browser(page(PeftMatrix(wide, {})), SCROLLED, tmp_path) == [True, False, False]
