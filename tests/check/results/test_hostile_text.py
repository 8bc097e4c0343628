"""Whatever a release calls its files and classes and writes into its code: every report parses, and none of it is obeyed."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hostile_reports import proof, record, report, reports
from hostile_text import ATTACKS, controls, obeyed, texts
from hypothesis import given, settings
from markdown_it import MarkdownIt
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of
from typer.testing import CliRunner

from patchkit.arch.registry import find
from patchkit.check.results.formats import as_github, as_json, as_junit
from patchkit.check.results.matrix import make_matrix, to_markdown
from patchkit.check.results.matrix_html import to_html
from patchkit.check.run import check_static
from patchkit.check.static.records import Records
from patchkit.cli.check_table import print_report
from patchkit.cli.console import SafeConsole, output_console
from patchkit.cli.main import app


@given(reports(texts))
@settings(max_examples=50)
def test_reports_for_machines(shown) -> None:
    written = as_json(shown)
    (result,) = json.loads(written)["results"]
    assert result["class"] == shown.entries[0].finding.class_name
    suites = as_junit(shown)
    names = [case.get("name") for case in ElementTree.fromstring(suites.encode()).iter("testcase")]
    assert len(names) == 1 + len({**shown.numeric[0].outcome.unpatched, **shown.numeric[0].outcome.problems})
    for text in (written, suites):
        assert not controls(text)
        assert not obeyed(text)
    for command in as_github(shown):
        assert len(command.splitlines()) == 1
        assert re.match(r"::(error|warning) file=patchkit/arch/llama\.py,title=[^:,]*::", command)
        assert not controls(command)


@given(reports(texts))
@settings(max_examples=50)
def test_reports_for_people(shown) -> None:
    for in_workflow in (True, False):
        file = StringIO()
        print_report(SafeConsole(in_workflow=in_workflow, file=file), shown)
        said = file.getvalue()
        assert not controls(said)
        assert not (in_workflow and obeyed(said))
        sums = [line for line in said.splitlines() if re.match("(not )?verified|nothing to verify", line)]
        assert len(sums) == 1, "no text of a release stands where ours does"


@given(texts, texts, texts)
@settings(max_examples=50)
def test_the_matrix(first: str, second: str, third: str) -> None:
    entry = record(first, second, third)
    matrix = make_matrix(Records([entry]), {entry.key: proof(entry.key, first)})
    page = to_markdown(matrix)
    assert not controls(page)
    kinds = {token.type for token in MarkdownIt("commonmark").enable("table").parse(page.partition("\n")[2])}
    assert not kinds & {"html_block", "fence", "code_block", "blockquote_open", "hr"}
    rows = [line for line in page.splitlines() if line.startswith("| llama ")]
    assert [row.count("|") for row in rows] == [3]
    html = to_html(matrix, [])
    assert html.count("<script") == html.count("</script>") == 2
    assert not controls(html)


HOSTILE = '''        note = """
::error file=a.py::run me
##[add-mask]x \\x1b stays as it was written"""  # \x1b[2J \u202e \x9b31m
        value = self.v_proj(hidden_states)
'''


@pytest.fixture
def hostile_release(tmp_path: Path) -> Path:
    """A checkout of which the folder, a class and the lines around every call are hostile."""
    source = SMALL_LLAMA.replace("        value = self.v_proj(hidden_states)\n", HOSTILE)
    folder = tmp_path / "a\x1b[31m\n::error::b\u202e"
    return folder_release(folder, "5.91.0", {path_of("llama"): source}).location


@pytest.mark.parametrize("options", [[], ["--diff"], ["--json"], ["--github"], ["--diff", "--github"]], ids=" ".join)
@pytest.mark.parametrize("in_workflow", [False, True])
def test_the_command(
    options: list[str], in_workflow: bool, hostile_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_workflow:
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
    else:
        monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setattr(Records, "load", lambda: Records())
    arguments = ["check", "--static", "--arch", "llama", "-t", str(hostile_release), *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert not controls(result.output)
    if in_workflow or "--github" in options:
        assert not obeyed(result.output)
    if "--diff" in options:
        assert "self.apply_qkv(hidden_states)" in result.output
        assert r"\x1b[2J \u202e \x9b31m" in result.output


@pytest.mark.parametrize("attack", ATTACKS, ids=ascii)
def test_errors(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is shown as one of ours, whatever it quotes."""
    from patchkit.check import run
    from patchkit.errors import ReleaseError

    def fail(*_: object, **__: object) -> None:
        raise ReleaseError(f"{attack} is no release")

    monkeypatch.setattr(run, "resolve", fail)
    result = CliRunner().invoke(app, ["check", "--static", "--arch", "llama"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert not controls(result.stderr)
    assert not obeyed(result.stderr)
    assert all(line.startswith(("patchkit: error: ", "    ")) for line in result.stderr.splitlines())


def test_what_the_encoding_of_a_terminal_lacks_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from io import BytesIO, TextIOWrapper

    file = TextIOWrapper(BytesIO(), encoding="ascii")
    console = SafeConsole(in_workflow=False, file=file)
    console.print("größer \u4e2d")
    assert file.buffer.getvalue() == b"gr\\xf6\\xdfer \\u4e2d\n"


def test_a_workflow_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, github, expected in ((None, False, False), (None, True, True), ("true", False, True)):
        monkeypatch.setenv("GITHUB_ACTIONS", value) if value else monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
        assert output_console(github=github).in_workflow is expected


MODULES = [
    'transformers/models/x"; import os; "/modeling_x.py',
    "transformers/models/x\n/modeling_x.py",
    "transformers/models/\x1b[31m/modeling_x.py",
    "transformers/models/class/modeling_x.py",
    "transformers/models/a b/modeling_x.py",
    "transformers/models/a-b/modeling_x.py",
    "transformers/models/a.b/modeling_x.py",
]


@pytest.mark.parametrize("path", MODULES, ids=ascii)
def test_no_edit_names_a_module_that_python_cannot_import(path: str, tmp_path: Path) -> None:
    known = folder_release(tmp_path / "known", "5.90.0", {path_of("llama"): SMALL_LLAMA})
    attention, mlp = SMALL_LLAMA.split("\n\n\n")
    moved = folder_release(tmp_path / "new", "5.91.0", {path_of("llama"): attention + "\n", path: mlp})
    failed = [e for e in check_static([moved], [find("llama")], records_of(known, "llama")).entries if e.failed]
    assert [entry.part for entry in failed] == ["mlp"]
    assert failed[0].diagnosis is not None
    assert failed[0].diagnosis.edit is None


def test_an_edit_shows_letters_that_look_like_others(tmp_path: Path) -> None:
    known = folder_release(tmp_path / "known", "5.90.0", {path_of("llama"): SMALL_LLAMA})
    source = SMALL_LLAMA.replace("o_proj", "\u043e_proj")
    report = check_static(
        [folder_release(tmp_path / "new", "5.91.0", {path_of("llama"): source})],
        [find("llama")],
        records_of(known, "llama"),
    )
    (entry,) = (entry for entry in report.entries if entry.failed)
    assert entry.diagnosis is not None
    assert entry.diagnosis.edit is not None
    assert entry.diagnosis.edit.after == r'Attention("LlamaAttention", o="\u043e_proj")'


def test_the_report_of_these_tests_is_hostile() -> None:
    shown = report(ATTACKS[0], ATTACKS[1], ATTACKS[2], "drifted")
    assert controls(str(shown.entries[0].diagnosis.found)) or controls(shown.entries[0].diagnosis.path)
