"""The page of the matrix in Chromium without a screen: what is shown, found, opened, and reached by keys."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of
from test_matrix import proof_of

from patchkit.check.results.matrix import make_matrix
from patchkit.check.results.matrix_html import to_html
from patchkit.check.results.models import Models
from patchkit.check.static.models import ClassInBrief, ModelInBrief
from patchkit.check.static.records import Records

pytestmark = pytest.mark.browser


def in_browser(page: str, script: str, folder: Path, *options: str) -> Any:
    """What a script makes of ``found`` at the end of the page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    told = 'document.body.replaceChildren(Object.assign(document.createElement("output"), { textContent: JSON.stringify(found) }));'
    place = folder / "matrix.html"
    place.write_text(page.replace("</body>", f"<script>{{\n{script}\n{told}\n}}</script></body>"))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    shown = subprocess.run(
        [chromium, *arguments, *options, place.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(html.unescape(shown.stdout.partition("<output>")[2].partition("</output>")[0]))


CLICKS = """
const shown = () => [...document.querySelectorAll("#body tr")].filter((row) => row.checkVisibility()).map((row) => row.dataset.name);
const found = { all: shown() };
const filter = document.getElementById("filter");
filter.value = "LLAM"; filter.dispatchEvent(new Event("input"));
found.filtered = shown(); found.count = document.getElementById("count").textContent;
filter.value = ""; filter.dispatchEvent(new Event("input"));
const cells = document.querySelectorAll("#body tr[data-name=llama] button");
cells[0].click();
const dialog = document.getElementById("dialog");
found.open = dialog.open; found.title = document.getElementById("title").textContent;
found.code = [...dialog.querySelectorAll("pre")].map((code) => code.innerText);
found.added = [...dialog.querySelectorAll(".add")].map((line) => line.textContent);
document.getElementById("close").click();
found.closed = !dialog.open;
found.colours = [...cells[0].children].map((part) => getComputedStyle(part).backgroundColor);
"""


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """Filter, click and colours, in Chromium without a screen."""
    forward = "def forward(self, hidden_states):\n"
    trap = SMALL_LLAMA.replace(forward, f"{forward}        note = '</script><!-- &amp;'\n")
    files = {path_of("llama"): trap, path_of("gemma"): SMALL_LLAMA.replace("Llama", "Gemma")}
    release = folder_release(tmp_path / "release", "5.1.0", files)
    records = records_of(release, "llama", "gemma", "llava")
    (mlp,) = (record for record in records.entries if record.finding.class_name == "LlamaMLP")
    page = to_html(make_matrix(records, proof_of(mlp)), [release])
    found = in_browser(page, CLICKS, tmp_path)
    assert found["all"] == ["gemma", "llama", "llava"]
    assert (found["filtered"], found["count"]) == (["llama"], "1 of 3 architectures")
    assert (found["open"], found["closed"], found["title"]) == (True, True, "llama, transformers 5.1.0")
    assert len(found["code"]) == 2
    assert "note = '</script><!-- &amp;'" in found["code"][0]
    assert "        return self.apply_o(attend(query, key, value))" in found["code"][0]
    assert "+         return self.apply_mlp(x)" in found["added"]
    query, output, proven = found["colours"]
    assert query == output != proven, "what is proven has a colour of its own"


NARROW = """
const map = document.querySelector("#body").closest(".map");
map.style.width = "320px";
shade(map);
const edge = map.getBoundingClientRect().right;
const heads = [...document.querySelectorAll("#head th")].slice(1);
const seen = heads.filter((cell) => cell.getBoundingClientRect().right <= edge).map((cell) => cell.textContent);
const found = { heads: heads.map((cell) => cell.textContent), seen, more: map.parentElement.classList.contains("more") };
"""


def test_the_newest_release_is_seen_at_every_width(tmp_path: Path) -> None:
    """It is the first column, and a shade says that the table goes on."""
    records, releases = Records(), []
    for number in range(12):
        releases.append(folder_release(tmp_path / f"{number}", f"5.{number}.0", {path_of("llama"): SMALL_LLAMA}))
        records = records.with_findings(
            [one.finding for one in records_of(releases[-1], "llama").entries], "2026-01-02"
        )
    found = in_browser(to_html(make_matrix(records, {}), releases), NARROW, tmp_path)
    assert found["heads"] == [f"5.{number}.0" for number in reversed(range(12))]
    assert "5.11.0" in found["seen"]
    assert "5.0.0" not in found["seen"]
    assert found["more"]


def models_page() -> str:
    """Three families in two releases: one of a hundred models, one of three, and a model of its own."""
    names = [*(f"many{number}" for number in range(100)), "qwen2", "qwen3", "qwen3_moe", "phi"]
    models = Models()
    for release in ("5.0.0", "5.1.0"):
        found = [_brief(name) for name in names if (name, release) != ("qwen3_moe", "5.0.0")]
        models = models.with_release(release, found)
    return to_html(make_matrix(Records(), {}), [], models, {"5.1.0": [_brief(name) for name in names]})


def _brief(name: str) -> ModelInBrief:
    parts = {"qkv": "◇", "o": "○"} if name == "qwen3" else {"mlp": "○"}
    return ModelInBrief(name, (ClassInBrief(f"{name.title()}Class", parts, "qkv: not together"),), others=2)  # type: ignore[arg-type]


SEARCH = """
const found = {};
const lines = () => [...document.querySelectorAll("#models tbody tr")].filter((row) => row.checkVisibility()).map((row) => row.cells[0].textContent);
const filter = document.getElementById("filter");
for (const words of ["", "qwen", "many", "QWEN3 phi", "lama"]) {
  filter.value = words; filter.dispatchEvent(new Event("input"));
  found[words] = [lines(), document.getElementById("count").textContent, document.getElementById("nothing").checkVisibility()];
}
filter.value = "m"; filter.dispatchEvent(new Event("input"));
found.made = document.querySelectorAll("#models tbody.model tr").length;
"""


def test_families_are_shown_first_and_a_search_opens_them(tmp_path: Path) -> None:
    found = in_browser(models_page(), SEARCH, tmp_path)
    families = ["many (100)", "qwen (3)", "others (1)"]
    assert found[""] == [families, "0 of 0 architectures, 104 of 104 models", False]
    assert found["qwen"][0] == ["qwen (3)", "qwen2", "qwen3", "qwen3_moe"]
    assert found["many"] == [
        ["many (100)"],
        "0 of 0 architectures, 100 of 104 models; a family opens on a click",
        False,
    ]
    assert found["QWEN3 phi"][0] == ["qwen (3)", "qwen3", "qwen3_moe", "others (1)", "phi"]
    assert found["lama"] == [[], "0 of 0 architectures, 0 of 104 models", True]
    assert found["made"] < 10, "lines are made of what is opened, or of few that a search has found"


KEYS = """
const found = { said: [] };
const press = (key) => {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  found.said.push(document.activeElement.getAttribute("aria-label") || document.activeElement.textContent);
};
const stops = () => [...document.querySelectorAll("button")].filter((one) => one.tabIndex === 0 && one.checkVisibility()).length;
found.stops = [stops()];
document.querySelector('#models button[tabindex="0"]').focus();
["ArrowDown", "ArrowRight", "End", "Home"].forEach(press);
document.activeElement.click();
["ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"].forEach(press);
found.stops.push(stops());
document.activeElement.click();
const dialog = document.getElementById("dialog");
found.opened = [dialog.open, document.getElementById("title").textContent, document.getElementById("content").innerText];
dialog.close();
press("ArrowRight");
document.activeElement.click();
found.empty = dialog.open;
found.head = getComputedStyle(document.querySelector("#models-head th")).position;
"""


def test_keys_go_from_cell_to_cell(tmp_path: Path) -> None:
    found = in_browser(models_page(), KEYS, tmp_path)
    absent, some = "qwen3_moe, transformers 5.0.0: absent", "q/k/v ◇, o ○, MLP ·"
    assert found["said"][:4] == [
        "qwen (3)",
        "qwen, transformers 5.1.0: q/k/v: 0 of 1 models whole; o: 1 of 1 models whole; MLP: 2 of 2 models whole",
        "qwen, transformers 5.0.0: q/k/v: 0 of 1 models whole; o: 1 of 1 models whole; MLP: 1 of 1 models whole",
        "qwen (3)",
    ]
    assert found["said"][4:] == [
        "qwen2, transformers 5.1.0: q/k/v ·, o ·, MLP ○",
        f"qwen3, transformers 5.1.0: {some}",
        "qwen3_moe, transformers 5.1.0: q/k/v ·, o ·, MLP ○",
        absent,
        f"qwen3, transformers 5.0.0: {some}",
        f"qwen3, transformers 5.1.0: {some}",
        f"qwen3, transformers 5.0.0: {some}",
    ]
    assert found["stops"] == [1, 1], "each table with cells is one stop of the tab key"
    opened, title, content = found["opened"]
    assert (opened, title) == (True, "qwen3, transformers 5.1.0")
    assert "Qwen3Class" in content
    assert "not together" in content
    assert "2 more classes" in content
    assert found["empty"] is False, "a release that was not read has nothing to open"
    assert found["head"] == "sticky"


NARROW_WINDOW = """
const found = { wide: document.documentElement.scrollWidth <= innerWidth };
document.querySelector("#body tr[data-name=llama] button").click();
const dialog = document.getElementById("dialog");
dialog.style.width = "280px"; // a window of Chromium is never narrower than 500
found.focus = [...dialog.querySelectorAll("pre")].map((code) => [code.tabIndex, code.getAttribute("aria-label")]);
found.cut = [...dialog.querySelectorAll("p, h2, h3")].filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent);
"""


def test_what_scrolls_takes_the_focus_and_no_word_is_cut(tmp_path: Path) -> None:
    release = folder_release(tmp_path / "release", "5.90.0", {path_of("llama"): SMALL_LLAMA})
    page = to_html(make_matrix(records_of(release, "llama"), {}), [release])
    found = in_browser(page, NARROW_WINDOW, tmp_path, "--window-size=500,900")
    assert found["wide"]
    assert found["focus"] == [[0, "rewrite of LlamaAttention"], [0, "rewrite of LlamaMLP"]]
    assert found["cut"] == []
