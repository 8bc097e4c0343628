"""``patchkit check --peft`` and ``--torch``: what is said of a release that changed a layer, in every format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from peft_checkouts import CHANGED_SCALING, peft_checkout
from typer.testing import CliRunner, Result

from patchkit.adapters import peft_known
from patchkit.adapters.peft_sources import READERS
from patchkit.check import peft_readers
from patchkit.check.static import peft_layers
from patchkit.check.static.peft_layers import ReaderRecords, findings_in
from patchkit.cli.main import app
from patchkit.upstream.releases import release_at

CONCERNED = {"Linear", "Linear, DoRA"}
ADDED = "* (2 * scaling)"


@pytest.fixture(autouse=True)
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that is on record, of the installed text, and one in which LoRA is scaled twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    known = release_at(peft_checkout(tmp_path / "known", "0.90.0"), "peft")
    peft_checkout(tmp_path / "new", "0.91.0", CHANGED_SCALING)
    records = ReaderRecords().with_findings(findings_in(known), "2026-01-02")
    records.save(tmp_path / "peft_records.jsonl")
    monkeypatch.setattr(peft_layers, "SHIPPED_PEFT_RECORDS", tmp_path / "peft_records.jsonl")
    monkeypatch.setattr(peft_readers, "fetch", lambda version, wheels, package: known)
    peft_known._why_unknown.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def check(*arguments: str) -> Result:
    return run("check", "--static", *arguments)


def test_a_release_of_the_same_text_is_verified_without_any_architecture() -> None:
    result = check("--peft", "./known")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "verified: PEFT's layers: 8 known; no model was run"


def test_drift_is_named_with_file_method_and_diff() -> None:
    result = check("--peft", "./new")
    assert result.exit_code == 1
    text = result.stdout
    assert "Linear, peft 0.91.0: changed (compared with 0.90.0)" in text
    assert re.search(r"^  peft/tuners/lora/layer\.py:\d+: Linear\.forward changed$", text, re.MULTILINE)
    assert re.search(rf"^ +\+ .*{re.escape(ADDED)}$", text, re.MULTILINE)
    assert text.splitlines()[-1] == "not verified: PEFT's layers: 2 changed, 6 known; no model was run"


def test_several_releases_and_json() -> None:
    result = check("--peft", "./new", "--peft", "./known", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["verified"] is False
    found = data["peft"]
    assert [one["version"] for one in found["releases"]] == ["0.90.0", "0.91.0"]
    failed = {(one["release"], one["reader"]) for one in found["results"] if one["failed"]}
    assert failed == {("0.91.0", reader) for reader in CONCERNED}
    (changed,) = [one for one in found["results"] if (one["release"], one["reader"]) == ("0.91.0", "Linear")]
    assert (changed["verdict"], changed["compared_with"], changed["proof"]) == ("changed", "0.90.0", None)
    (change,) = changed["changes"]
    assert (change["name"], change["path"], change["what"]) == (
        "Linear.forward",
        "peft/tuners/lora/layer.py",
        "changed",
    )
    assert any(ADDED in line for line in change["diff"])


def test_junit(tmp_path: Path) -> None:
    assert check("--peft", "./new", "--junit", "junit.xml").exit_code == 1
    (suite,) = ElementTree.fromstring((tmp_path / "junit.xml").read_text())
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("peft 0.91.0 static", "8", "2")
    failures = {case.get("name"): case.findtext("failure") or "" for case in suite if len(case)}
    assert set(failures) == CONCERNED
    assert ADDED in failures["Linear"]


def test_github() -> None:
    result = check("--peft", "./new", "--github")
    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert len(commands) == len(CONCERNED)
    for command in commands:
        assert re.fullmatch(r"::error file=patchkit/adapters/peft_sources\.py,title=Linear[^:]*::.+", command)
    assert all("Linear.forward changed" in command for command in commands)


def test_it_goes_together_with_architectures() -> None:
    result = check("--peft", "./known", "--arch", "llama", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert {one["architecture"] for one in data["results"]} == {"llama"}
    assert len(data["peft"]["results"]) == len(READERS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peft", "./nowhere"], "nowhere does not exist; expected a wheel, or a checkout with src/peft"),
        (["--peft", "."], "has no peft/tuners"),
        (["--peft", "new"], "'new' is not a release, a range such as"),
        (["--peft", "0.90", "--wheels", "."], "has no wheel of peft"),
        (["--peft", "./known", "--static", "--torch", "2.8.0"], "no source depends on it; leave out --static"),
        (["--arch", "llama", "--torch", "new"], "'new' is no version of torch, such as 2.8.0; or 'installed'"),
        (["--torch", "2.8.0"], "say which: --arch NAME, or --all"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_line_and_exit_2(arguments: list[str], said: str) -> None:
    result = run("check", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert said in " ".join(result.stderr.replace("│", " ").split())
