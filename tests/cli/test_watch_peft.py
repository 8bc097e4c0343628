"""``patchkit watch --peft``: what is said of releases of PEFT that the matrix lacks, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version
from peft_checkouts import CHANGED_SCALING, peft_release
from typer.testing import CliRunner, Result

from patchkit.adapters import peft_known
from patchkit.check import TIME_LIMIT, peft_readers
from patchkit.check.results.models import Models
from patchkit.check.results.report import CheckReport
from patchkit.check.run import Numbers
from patchkit.check.static import peft_layers, records
from patchkit.check.static.models import ClassInBrief, ModelInBrief
from patchkit.check.static.peft_layers import ReaderRecords, findings_in
from patchkit.cli import watch
from patchkit.cli.main import app
from patchkit.upstream import index, releases


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["watch", "--peft", *arguments])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """An index of PEFT: release and whether its text is another than the recorded 0.90.0's. Tests add to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    there = {"0.90.0": False}

    def fetch(version, wheels=None, package="peft"):
        assert package == "peft"
        return peft_release(tmp_path / version, version, CHANGED_SCALING if there[version] else None)

    known = ReaderRecords().with_findings(findings_in(fetch("0.90.0")), "2026-01-02")
    known.save(tmp_path / "peft_records.jsonl")
    monkeypatch.setattr(peft_layers, "SHIPPED_PEFT_RECORDS", tmp_path / "peft_records.jsonl")
    monkeypatch.setattr(records, "SHIPPED_RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(peft_readers, "fetch", fetch)
    monkeypatch.setattr(releases, "fetch", fetch)

    def versions(wheels=None, package="transformers"):
        assert package == "peft"
        return [Version(version) for version in there]

    monkeypatch.setattr(index, "list_versions", versions)
    peft_known._why_unknown.cache_clear()
    return there


def test_nothing_new(published: dict[str, bool]) -> None:
    result = run("--static")
    assert (result.exit_code, result.stdout) == (
        0,
        "nothing new: no release of PEFT after 0.90.0 that the matrix lacks\n",
    )


def test_a_release_of_the_same_text_is_verified(published: dict[str, bool]) -> None:
    published["0.91.0"] = False
    result = run("--static")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "new of PEFT: 0.91.0"
    assert "verified: PEFT's layers: 8 known; no model was run" in lines
    assert lines[-1] == "to do: `patchkit check --peft 0.91.0` proves the numbers."


def test_drift_is_named_and_exit_1(published: dict[str, bool]) -> None:
    published |= {"0.91.0": False, "0.92.0": True}
    result = run("--static", "--github")
    assert result.exit_code == 1, result.output
    assert "Linear, peft 0.92.0: changed (compared with 0.90.0)" in result.stdout
    assert "Linear.forward changed" in result.stdout
    commands = [line for line in result.stdout.splitlines() if line.startswith("::error")]
    assert len(commands) == 2, "LoRA and DoRA on a linear layer"
    assert "patchkit check --peft 0.91.0 --peft 0.92.0" in " ".join(result.stdout.split())


def test_write_adds_a_column_and_the_next_run_finds_nothing(published: dict[str, bool], tmp_path: Path) -> None:
    published["0.91.0"] = False
    brief = ModelInBrief("acme9", (ClassInBrief("AcmeMLP", {"mlp": "○"}, ""),), others=0)
    (tmp_path / "compat_models.jsonl").write_text(Models().with_release("5.0.0", [brief]).to_text(), "utf-8")
    result = run("--static", "--write", "--output", str(tmp_path / "matrix.md"))
    assert result.exit_code == 0, result.output
    assert "commit it with peft_records.jsonl and peft_proofs.jsonl" in " ".join(result.stdout.split())
    assert "| layer | | 0.91.0 | 0.90.0 |" in (tmp_path / "matrix.md").read_text()
    assert "| acme9 |" in (tmp_path / "matrix.md").read_text(), "what is known of other models stays"
    assert not (tmp_path / "records.jsonl").exists(), "nothing of transformers was looked at"
    again = run("--static")
    assert "no release of PEFT after 0.91.0" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ([], Numbers(unproven=True, record=False, seconds=TIME_LIMIT)),
        (["--static"], None),
        (["--time-limit", "60"], Numbers(unproven=True, record=False, seconds=60.0)),
    ],
    ids=str,
)
def test_what_is_asked_of_the_check(published, monkeypatch, arguments, numbers) -> None:
    published["0.91.0"] = False
    asked = []

    def check(arch, transformers, known, wheels, wanted, require_hashes, *beside):
        asked.append((arch, wanted, beside))
        return CheckReport((), ())

    monkeypatch.setattr(watch, "run_shown", check)
    run(*arguments)
    assert asked == [([], numbers, (["0.91.0"],))]


def test_the_new_releases_are_listed_and_nothing_is_checked(published, monkeypatch) -> None:
    monkeypatch.setattr(watch, "run_shown", lambda *_: pytest.fail("it was checked"))
    assert run("--list").stdout == ""
    published |= {"0.91.0": False, "0.92.0": True}
    result = run("--list")
    assert (result.exit_code, result.stdout) == (0, "0.91.0\n0.92.0\n")


@pytest.mark.parametrize("since", ["yesterday", "-"])
def test_since_is_a_release(published: dict[str, bool], since: str) -> None:
    result = run("--since", since)
    assert result.exit_code == 2
    assert f"'{since}' is not a release" in " ".join(result.stderr.replace("│", " ").split())
