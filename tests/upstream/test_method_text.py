"""Cutting a method out of a module's text: every step may fail on text of others, and each failure is one class's."""

from __future__ import annotations

import ast
import textwrap

import pytest

from patchkit.errors import RewriteError
from patchkit.upstream import method_text
from patchkit.upstream.method_text import MOST_NESTED, find_method

TEXT = "class A:\n    @d\n    def forward(self):\n        return 1\n"

STEPS = ["parsed", "class_named", "method_named", "first_line", "_depth", "split_lines"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [RecursionError, MemoryError, ValueError, KeyError, AttributeError, AssertionError])
def test_any_failure_of_any_step_names_the_file_and_the_method(step, error, monkeypatch):
    assert find_method(TEXT, "A", "forward", "a.py").line == 2

    def fail(*_):
        raise error("x")

    monkeypatch.setattr(method_text, step, fail)
    with pytest.raises(RewriteError, match=r"^a\.py:1: A\.forward cannot be found: ") as raised:
        find_method(TEXT, "A", "forward", "a.py")
    assert isinstance(raised.value.__cause__, error)


METHOD = "class {name}:\n    def forward(self): ...\n"
PLACES = {
    "if": "if a:\n{0}",
    "else": "if a:\n    pass\nelse:\n{0}",
    "try": "try:\n{0}finally:\n    pass\n",
    "except": "try:\n    pass\nexcept E:\n{0}",
    "try's else": "try:\n    pass\nexcept E:\n    pass\nelse:\n{0}",
    "finally": "try:\n    pass\nfinally:\n{0}",
    "with": "with a:\n{0}",
    "for": "for a in b:\n{0}",
    "for's else": "for a in b:\n    pass\nelse:\n{0}",
    "while": "while a:\n{0}",
    "while's else": "while a:\n    pass\nelse:\n{0}",
    "case": "match a:\n  case 1:\n{0}",
    "a class": "class B:\n{0}",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_class_is_found_wherever_python_would_define_it(place):
    inner = textwrap.indent(METHOD.format(name="A"), "    ")
    text = "x = 1\n" + PLACES[place].format(inner)
    name = "B.A" if place == "a class" else "A"
    cut = find_method(text, name, "forward", "a.py")
    assert cut.before + cut.text + cut.after == text
    assert cut.text.strip() == "def forward(self): ..."
    assert text.splitlines()[cut.line - 1].strip() == "def forward(self): ..."


@pytest.mark.parametrize("place", PLACES)
def test_which_of_two_counts_is_not_guessed_under_conditions(place):
    text = METHOD.format(name="A") + PLACES[place].format(textwrap.indent(METHOD.format(name="A"), "    "))
    if place == "a class":
        assert find_method(text, "A", "forward", "a.py").line == 2
        return
    with pytest.raises(RewriteError, match="A is defined more than once, under conditions"):
        find_method(text, "A", "forward", "a.py")


def test_of_two_at_the_top_the_last_counts():
    text = METHOD.format(name="A") * 2
    assert find_method(text, "A", "forward", "a.py").line == 4


def levels_of(node):
    return 1 + max(map(levels_of, ast.iter_child_nodes(node)), default=0)


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2])
def test_the_deepest_method_that_is_taken(beyond):
    def text(n):
        return f"class A:\n    def forward(self):\n        return {'not ' * n}x\n"

    def levels(n):
        return levels_of(ast.parse(text(n)).body[0].body[0])

    n = MOST_NESTED + beyond - levels(0)
    assert levels(n) == MOST_NESTED + beyond
    if beyond <= 0:
        assert find_method(text(n), "A", "forward", "a.py").line == 2
    else:
        with pytest.raises(RewriteError, match="forward is nested too deeply to rewrite"):
            find_method(text(n), "A", "forward", "a.py")
