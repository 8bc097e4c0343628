"""Reading text of others: each tree once, each failure of one kind and with its place."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator

import pytest

from patchkit.errors import RewriteError
from patchkit.upstream.text import failures_of, parsed, parsed_alone, split_lines

BROKEN = {
    "class A(:": "invalid syntax",
    "a = 'b\0'": "null bytes",
    "a = " + "-" * 5_000 + "1": "it is nested too deeply, or too large",  # a RecursionError
    "a = " + "-" * 100_000 + "1": "it is nested too deeply, or too large",  # a MemoryError
}


@pytest.fixture
def usual_depth() -> Iterator[None]:
    """Python's own limit of recursion: packages that compile raise it for the whole process."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("usual_depth")
@pytest.mark.parametrize("source", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("parse", [parsed, parsed_alone])
def test_what_does_not_parse_says_where_if_anybody_knows(parse, source: str) -> None:
    with pytest.raises(RewriteError, match=rf"^a\.py:1: the source does not parse: .*{BROKEN[source]}"):
        parse(source, "a.py")
    with pytest.raises(RewriteError, match=rf"^the source does not parse: .*{BROKEN[source]}"):
        parse(source)


def test_the_line_is_that_of_the_failure() -> None:
    with pytest.raises(RewriteError, match=r"^a\.py:3: the source does not parse: invalid syntax"):
        parsed("x = 1\n\ny = = 1\n", "a.py")
    with pytest.raises(RewriteError, match=r"^a\.py:7: it fails: KeyError: 'x'"), failures_of("a.py", "it fails", 7):
        raise KeyError("x")


def test_a_text_is_parsed_once() -> None:
    assert parsed("x = 1\n", "a.py") is parsed("x = 1\n", "b.py")


@pytest.mark.parametrize("parse", [parsed, parsed_alone])
def test_warnings_about_upstreams_text_are_nobodys_business(parse) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse("x = '\\d'  # seen by this test alone\n")


@pytest.mark.parametrize("indent", ["", "    ", "\t"])
def test_a_piece_may_be_indented_and_keeps_its_strings(indent: str) -> None:
    body = parsed_alone(f'\n{indent}x = """a\n  b"""\n{indent}y = 1\n')
    assert len(body) == 2
    assert isinstance(body[0], ast.Assign)
    assert ast.literal_eval(body[0].value) == "a\n  b"


def test_lines_are_those_of_the_tokenizer() -> None:
    assert split_lines("a\x0cb\nc\r\nd\re") == ["a\x0cb\n", "c\r\n", "d\r", "e"]
