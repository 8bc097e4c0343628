"""What the documentation shows is true: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt
from typer.main import get_command

from patchkit.cli.main import app
from patchkit.options import Options
from patchkit.testing import tiny_inputs, tiny_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def blocks(name: str, *languages: str) -> Iterator[str]:
    for token in MarkdownIt().parse((ROOT / name).read_text("utf-8")):
        if token.type == "fence" and token.info.strip() in languages:
            yield token.content


PYTHON = [name for name in NAMES if name != "CONTRIBUTING.md" and any(blocks(name, "python"))]


def test_pages_with_code_are_found():
    assert {"README.md", "docs/index.md", "docs/options.md", "docs/training.md", "docs/parity.md"} <= set(PYTHON)


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_python_runs(name, tmp_path, monkeypatch, lora_model):
    """Each page from top to bottom. What a reader has and no page makes: a folder of a model, a batch, a patched model."""
    monkeypatch.chdir(tmp_path)
    _, model = lora_model()
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    given = {"path": tmp_path / "llama", "model": model, "batch": tiny_inputs("llama", model)}
    given |= {"patchkit": __import__("patchkit")}
    for code in blocks(name, "python"):
        exec(compile(code, name, "exec"), given)


def commands() -> Iterator[tuple[str, list[str]]]:
    for name in NAMES:
        for code in blocks(name, "bash", ""):
            for line in code.splitlines():
                if line.startswith("patchkit "):
                    yield name, shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize(
    ("name", "words"), list(commands()), ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_commands_exist(name, words, tmp_path, monkeypatch):
    """They are parsed and not run."""
    monkeypatch.chdir(tmp_path)
    for script in (word for word in words if word.endswith(".py")):
        (tmp_path / script).touch()
    group = get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    assert words[0] in group.commands, name
    command = group.commands[words[0]]
    command.make_context(words[0], list(words[1:]))


def test_there_are_commands():
    assert {words[0] for _, words in commands()} >= {"check", "scan", "watch", "new-arch"}


def anchors(path: Path) -> set[str]:
    """As GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize(
    "name", [*NAMES, "SECURITY.md", "SUPPORT.md", "examples/plugin/README.md", "examples/integrations/README.md"]
)
def test_links_lead_somewhere(name):
    made = {"rules.md", "gallery.md", "compatibility.md", "models.md", "performance.md", "changelog.md"}
    made |= {f"extend/{page}.md" for page in ("architecture", "rule", "reader", "contributing")}
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        if name.startswith("docs/") and file in made:
            continue
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("option", [one.name for one in fields(Options)])
def test_every_option_is_explained(option):
    assert f"| `{option}` | `" in (ROOT / "docs" / "options.md").read_text("utf-8")


def test_defaults_are_those_of_apply():
    text = (ROOT / "docs" / "options.md").read_text("utf-8")
    for one in fields(Options):
        shown = f'"{one.default}"' if isinstance(one.default, str) else str(one.default)
        assert f"| `{one.name}` | `{shown}` |" in text
