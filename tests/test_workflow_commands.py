"""What the workflows call exists: targets of the Makefile, commands and options of patchkit, modules and files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from patchkit.cli.main import app

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([\w$()./-]+):(?!=)", MAKEFILE.replace("$(VENV)", ".venv"), re.MULTILINE))
VARIABLES = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE))
COMMANDS = {"make", "patchkit", "python", "pytest"}


def calls() -> Iterator[tuple[str, str, list[str]]]:
    """Workflow, command and its words, of each call of a workflow's scripts that is ours."""
    for file in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for job in yaml.safe_load(file.read_text("utf-8"))["jobs"].values():
            for step in job["steps"]:
                for line in step.get("run", "").splitlines():
                    line = re.sub(r"\$\{SINCE:\+[^}]*\}", "", line.replace("$(python", "\npython"))
                    for part in re.split(r"\n|&&|\|", line):
                        words = shlex.split(re.sub(r"\s\d?>.*|\)\s*$", "", part), comments=True)
                        if words and (name := Path(words[0]).name) in COMMANDS:
                            yield file.name, name, words[1:]


CALLS = list(calls())


def test_there_are_calls_of_every_kind():
    assert {name for _, name, _ in CALLS} >= {"make", "patchkit", "python"}
    assert {"ci.yml", "nightly.yml", "release.yml", "watch.yml", "weekly.yml"} == {file for file, _, _ in CALLS}


def _patchkit(words: list[str]) -> None:
    group = get_command(app)
    commands = getattr(group, "commands", {})
    assert words[0] in commands, words[0]
    known = {option for one in commands[words[0]].params for option in (*one.opts, *one.secondary_opts)}
    assert {word for word in words[1:] if word.startswith("-")} <= known


@pytest.mark.parametrize(("file", "name", "words"), CALLS, ids=lambda v: " ".join(v) if isinstance(v, list) else v)
def test_a_call_is_of_something_that_exists(file: str, name: str, words: list[str]) -> None:
    if name == "make":
        targets = [word for word in words if "=" not in word]
        assert targets, "the default target is a help text"
        assert set(targets) <= TARGETS
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        assert settings.keys() <= VARIABLES
        assert all((ROOT / value).is_file() for key, value in settings.items() if key == "CONSTRAINTS")
    elif name == "patchkit":
        _patchkit(words)
    elif words[0] == "-m":
        module = words[1]
        if module == "patchkit.cli.main":
            _patchkit(words[2:])
        elif module.startswith(("tools", "patchkit", "benchmarks", "examples")):
            place = ROOT.joinpath(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
        else:
            assert module in {"pip", "pytest"}
            assert all((ROOT / word).exists() for word in words[2:] if word.startswith("tests/"))
    else:
        assert (ROOT / words[0]).is_file()


def test_the_files_that_watch_proposes_exist():
    text = (ROOT / ".github/workflows/watch.yml").read_text("utf-8")
    named = set(re.findall(r"\bpatchkit/[\w/]+\.jsonl|\bcompat_matrix\.md", text))
    assert len(named) == 5
    assert all((ROOT / name).is_file() for name in named)
