"""The generated pages of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from patchkit.rewrite.rules.registry import rules
from patchkit_kernels.ops.activations import Activation
from tools.docs import hook
from tools.docs.pages import GALLERY, activations, pages, remedies, section_of

ROOT = Path(__file__).parents[2]
PAGES = pages()


def test_every_page_of_the_contents_exists():
    contents = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    named = {word for word in contents.split() if word.endswith(".md")}
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert named == written | set(PAGES)
    assert not written & set(PAGES)


def test_rules_have_every_example():
    text = PAGES["rules.md"]
    for rule in rules():
        assert f"\n## {rule.name}\n" in text
        for before, after in rule.valid:
            for sign, body in (("-", before), ("+", after)):
                assert "\n".join(f"{sign}{line}" for line in body.splitlines()) in text
        for body, reason in rule.invalid:
            left = text.partition(f"```python\n{body}\n```\n\n")[2]
            assert reason in left.partition("\n\n")[0]


@pytest.mark.parametrize("name", GALLERY)
def test_the_gallery_shows_rewrites(name):
    shown = PAGES["gallery.md"].partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert "+" in {line[:1] for line in shown.splitlines()}
    assert "self.apply_" in shown


def test_every_activation_has_its_formula():
    rows = activations().splitlines()
    assert [row.split("`")[1] for row in rows] == list(get_args(Activation))
    assert all(row.startswith("| `") and row.endswith(" |") and row.count("|") == 3 for row in rows)
    assert "| `quick_gelu` | `x * sigmoid(1.702 x)` |" in rows


def test_a_section_that_is_gone_is_named():
    assert section_of("# A\n## B\ntext\n### C\n## D\n", "B") == "# B\ntext\n### C\n"
    with pytest.raises(ValueError, match="no section 'E'"):
        section_of("# A\n", "E")


def test_no_link_leads_out_of_the_site():
    for name, text in PAGES.items():
        assert "](../" not in text, name
        assert not re.search(r"\]\((?!https?:)[^)]*\)", text), name


@pytest.mark.parametrize(
    ("name", "rows"), [("fused", activations), ("troubleshooting", remedies)], ids=["activations", "remedies"]
)
def test_the_hook_puts_tables_in(name, rows):
    page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    assert "{{" in page
    shown = hook.on_page_markdown(page, page=SimpleNamespace())
    assert rows() in shown
    assert "{{" not in shown


def test_a_page_without_tables_stays_as_it_is():
    assert hook.on_page_markdown("nothing") == "nothing"


def test_every_remedy_is_one_row():
    assert all(row.replace("\\|", "").count("|") == 3 for row in remedies().splitlines())
