"""The diff as a page."""

from __future__ import annotations

import html.parser

import pytest
from contrast import AA, contrast, themes
from typer.testing import CliRunner

from patchkit.cli.diff_html import page
from patchkit.cli.main import app

LINES = [
    "# acme",
    "# acme/modeling.py: AcmeMLP.forward",
    "#   rewrote mlp (line 3): gate_proj, rule gated-mlp",
    "--- acme-1.0/acme/modeling.py",
    "+++ patchkit/acme/modeling.py",
    "@@ -1,4 +1,3 @@",
    " def forward(self, x):",
    "-    gate = self.gate_proj(x)",
    "-    return self.down_proj(gate)",
    "+    return self.apply_mlp(x)",
    " # a <comment>\x1b[31m",
    "# next",
]


class Page(html.parser.HTMLParser):
    """Rows of cells, each with its class; and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.other = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append([dict(attributes).get("class", ""), ""])
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1][1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "p", "title"):
            self.other.append((self.open[-1], data))


def test_what_was_removed_stands_beside_what_came():
    found = Page(page(LINES, "acme"))
    assert found.rows == [
        [["", "acme-1.0/acme/modeling.py"], ["", "patchkit/acme/modeling.py"]],
        [["", "@@ -1,4 +1,3 @@"], ["", ""]],
        [["", "def forward(self, x):"], ["", "def forward(self, x):"]],
        [["removed", "    gate = self.gate_proj(x)"], ["added", "    return self.apply_mlp(x)"]],
        [["removed", "    return self.down_proj(gate)"], ["", ""]],
        [["", "# a <comment>\\x1b[31m"], ["", "# a <comment>\\x1b[31m"]],
    ]
    assert found.other == [
        ("title", "patchkit diff: acme"),
        ("h1", "What patchkit rewrites"),
        ("h2", "acme"),
        ("h2", "acme/modeling.py: AcmeMLP.forward"),
        ("p", "rewrote mlp (line 3): gate_proj, rule gated-mlp"),
        ("h2", "next"),
    ]


@pytest.mark.parametrize("end", [4, 5, 8, 9, 10])
def test_it_is_closed_wherever_the_lines_end(end):
    Page(page(LINES[:end], "<acme>"))


def test_the_command(tmp_path):
    path = tmp_path / "diff.html"
    result = CliRunner().invoke(app, ["diff", "--arch", "llama", "--arch", "llava", "--html", str(path)])
    assert result.exit_code == 0
    assert "self.apply_qkv" not in result.output
    rows = Page(path.read_text("utf-8")).rows
    assert ["added", "        q, k, v = self.apply_qkv(hidden_states)"] in [cell for row in rows for cell in row]


def test_the_page_has_a_main_part_and_each_diff_takes_the_focus():
    text = page([*LINES, *LINES], "acme")
    assert (text.count("<main>"), text.count("<h1>")) == (1, 1)
    assert (
        text.count('<div class="diff" tabindex="0" role="group" aria-label="acme-1.0/acme/modeling.py, rewritten">')
        == 2
    )
    assert text.count('<th scope="col">') == 4


def test_lines_that_stay_are_told_from_those_that_changed():
    """Where the window is narrow they are shown once."""
    text = page(LINES, "acme")
    assert '<tr class="same"><td>def forward(self, x):</td><td>def forward(self, x):</td></tr>' in text
    assert text.count('<tr class="same">') == sum(line.startswith(" ") for line in LINES)


def test_text_can_be_read_in_both_themes():
    for theme in themes(page(LINES, "acme")):
        for ground in ("ground", "removed", "added"):
            assert contrast(theme["text"], theme[ground]) >= AA
        assert contrast(theme["faint"], theme["ground"]) >= AA
