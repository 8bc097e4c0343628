"""Docstrings are in one mood: what a function does in the imperative, what it gives as that thing; never "Returns ..."."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("patchkit", "kernels", "tools", "examples", "benchmarks")

USUAL = frozenset(
    {"call", "check", "compute", "create", "get", "give", "load", "make", "print", "return", "run", "set"}
)
NOUNS = frozenset({"As", "Names", "Reads", "Rows", "Tests", "Lines"})
"""Words that are not always a verb: ``Names that are bound``. What they begin was read."""


def first_words() -> Iterator[tuple[str, str]]:
    """The first word of the docstring of every function, and where it stands."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (said := ast.get_docstring(node)):
                    yield said.split()[0], f"{path.relative_to(ROOT)}:{node.lineno}"


def third_person(words: set[str]) -> set[str]:
    """Forms with an s of verbs that other docstrings begin with, and of the usual ones."""
    verbs = {word for word in words if word.isalpha() and word.istitle()} | {word.title() for word in USUAL}
    return {form for verb in verbs for form in (f"{verb}s", f"{verb}es")} - NOUNS


def test_functions_are_described_in_one_mood():
    found = list(first_words())
    assert len(found) > 1000
    forms = third_person({word for word, _ in found})
    wrong = [f"{place}: {word}" for word, place in found if word in forms]
    assert not wrong, "say what the function does in the imperative:\n" + "\n".join(wrong)


def test_another_mood_is_found():
    forms = third_person({"Draw", "The"})
    assert {"Returns", "Makes"} <= forms
    assert not {"The", "This", "As", "Rows"} & forms
    assert "Draws" in forms
    assert "Keeps" in third_person({"Keep"})
