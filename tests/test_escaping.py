"""Any text in every kind of output: it parses, holds no control character, and no line is a command to a runner."""

from __future__ import annotations

import ast
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hostile_text import ATTACKS, controls, obeyed, texts
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from patchkit import escaping


def test_the_judges_see_attacks() -> None:
    """Of the attacks as they are, each is seen by one of the judges, or is one of those that only a parser minds."""
    mere_markup = {
        "]]>",
        '"; import os; "',
        *(text for text in ATTACKS if text[0] in "|<`"),
        "line\nverified: everything",
        "\ufffe\uffff",
    }
    assert {text for text in ATTACKS if not controls(text) and not obeyed(text)} == mere_markup


@given(texts)
def test_visible(text: str) -> None:
    shown = escaping.visible(text)
    assert not controls(shown)
    assert shown.split("\n") == [escaping.one_line(line) for line in text.split("\n")]
    assert escaping.visible(shown) == shown
    shown.encode("utf-8")


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert escaping.visible(text) == escaping.one_line(text) == text


@given(texts)
def test_one_line(text: str) -> None:
    shown = escaping.one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not controls(shown)


@given(texts)
def test_indented(text: str) -> None:
    assert all(line.startswith("    ") for line in escaping.indented(f"a{text}").split("\n")[1:])


@given(texts)
def test_without_commands(text: str) -> None:
    shown = escaping.without_commands(escaping.visible(text))
    assert not obeyed(shown)
    assert escaping.without_commands(shown) == shown


@pytest.mark.parametrize("line", ["x = a[1::2]", "std::vector::size", "# 1 [2]", "a ##", "key: value", "+# x[0]"])
def test_what_is_no_command_stays_as_it_is(line: str) -> None:
    assert escaping.without_commands(line) == line


@given(texts, texts)
def test_a_workflow_command_is_one_command_with_that_text(title: str, text: str) -> None:
    """Read back as the runner does: ``UnescapeProperty`` and ``UnescapeData``."""
    line = escaping.workflow_command("error", text, title=title)
    assert "\n" not in line
    assert not controls(line)
    assert line.startswith("::error title=")
    words, _, data = line.removeprefix("::error ").partition("::")
    assert "," not in words
    assert unescaped(words.removeprefix("title="), "%3A", "%2C") == escaping.visible(title)
    assert unescaped(data) == escaping.visible(text)


def unescaped(text: str, *more: str) -> str:
    for escape in ("%0D", "%0A", *more, "%25"):
        text = text.replace(escape, chr(int(escape[1:], 16)))
    return text


@given(texts)
def test_json(text: str) -> None:
    written = escaping.json_text({"key": [text], text: 1})
    assert json.loads(written) == {"key": [text], text: 1}
    assert written.isascii()
    assert not controls(written)
    assert not obeyed(written)


class Elements(HTMLParser):
    """The start tags of a page, and the text of its last script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.script = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.script += data


@given(texts)
def test_json_in_html(text: str) -> None:
    parser = Elements()
    page = f'<script type="application/json">{escaping.json_in_html({"a": [text]})}</script>'
    parser.feed(page)
    parser.close()
    assert parser.tags == ["script"]
    assert json.loads(parser.script) == {"a": [escaping.visible(text)]}


@given(texts)
def test_xml(text: str) -> None:
    element = ElementTree.Element("failure", message=escaping.xml_text(text))
    element.text = escaping.xml_text(text)
    written = ElementTree.tostring(element, encoding="unicode")
    read = ElementTree.fromstring(written.encode())
    assert (read.text or "") == read.get("message") == escaping.xml_text(text)
    assert not controls(written)
    assert not obeyed(written)


@given(texts)
def test_markdown(text: str) -> None:
    """In a cell: as many cells as without it, and nothing in it but text."""
    page = f"| a | b |\n|---|---|\n| x{escaping.markdown(text)}x | y |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    assert {child.type for child in cells[2].children or []} <= {"text", "text_special"}
    shown = "".join(child.content for child in cells[2].children or [])
    assert shown == f"x{escaping.one_line(text)}x"
    assert not controls(page)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "LlamaAttention (llama)", "5.23.0", "PyTorch 2.13.0+cpu", "2026-01-02"])
def test_names_stay_as_they_are_in_markdown(name: str) -> None:
    assert escaping.markdown(name) == name


@given(texts)
def test_fenced(text: str) -> None:
    (code,) = MarkdownIt("commonmark").parse(escaping.fenced(text))
    assert (code.type, code.info) == ("fence", "text")
    assert code.content == f"{escaping.visible(text)}\n"


@given(st.one_of(texts, st.from_regex(r"[^\W\d]\w{0,9}(\.[^\W\d]\w{0,9})?", fullmatch=True)))
def test_only_a_name_is_put_into_code(text: str) -> None:
    try:
        code = escaping.string_literal(text)
    except ValueError:
        assert not escaping.is_name(text)
        return
    assert code.isascii()
    assert ast.literal_eval(code) == text
    assert all(part.isidentifier() for part in text.split("."))


@pytest.mark.parametrize("name", ["", ".", "a.", "a b", "a-b", "1a", 'a"', "a\n", "a.class", "a..b", "\ud800"])
def test_what_is_no_name_is_not_put_into_code(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        escaping.string_literal(name)
