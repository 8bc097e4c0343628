"""Options that take several values at once."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from patchkit.cli.several_values import SeveralValues


@pytest.fixture
def parsed():
    found = {}
    app = typer.Typer()

    @app.command(cls=SeveralValues)
    def command(
        rank: Annotated[list[int] | None, typer.Option("--rank", "-r")] = None,
        name: Annotated[list[str] | None, typer.Option("--name")] = None,
        one: Annotated[str, typer.Option("--one")] = "",
        flag: Annotated[bool, typer.Option("--flag")] = False,
    ):
        found.update(rank=rank or [], name=name or [], one=one, flag=flag)

    def run(*words):
        found.clear()
        result = CliRunner().invoke(app, list(words))
        return result.exit_code, dict(found)

    return run


def given(**values):
    return 0, {"rank": [], "name": [], "one": "", "flag": False, **values}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("", {}),
        ("--rank 8", {"rank": [8]}),
        ("--rank 8 16 32", {"rank": [8, 16, 32]}),
        ("--rank 8 16 --name a b --flag", {"rank": [8, 16], "name": ["a", "b"], "flag": True}),
        ("-r 8 16 -r 32", {"rank": [8, 16, 32]}),
        ("--rank=8 --name a", {"rank": [8], "name": ["a"]}),
        ("--one x --rank 1 2", {"one": "x", "rank": [1, 2]}),
        ("--name a a", {"name": ["a", "a"]}),
    ],
)
def test_values(parsed, words, values):
    assert parsed(*words.split()) == given(**values)


@pytest.mark.parametrize("words", ["--one x y", "--flag x", "x", "--rank 8 y", "--rank --flag"])
def test_words_that_belong_to_nothing_are_refused(parsed, words):
    assert parsed(*words.split())[0] == 2
