"""``patchkit watch --torch``: which versions are looked for, what is run with each, and what is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version
from typer.testing import CliRunner, Result

from patchkit.check import TIME_LIMIT
from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome, CheckOutcome
from patchkit.check.results import torch_records
from patchkit.check.results.report import CheckReport, NumericEntry
from patchkit.check.results.torch_records import TorchRecord, TorchRecords
from patchkit.check.run import Numbers
from patchkit.cli import watch
from patchkit.cli.main import app
from patchkit.upstream import index
from patchkit.upstream.release import Release


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["watch", "--torch", *arguments])


def outcome(torch: str, status: str = "passed") -> ArchitectureOutcome:
    versions = {"transformers": "5.23.0", "torch": f"{torch}+cpu", "peft": "0.21.2", "python": "3.11.7"}
    checks = {"eval": CheckOutcome("passed"), "generate": CheckOutcome(status)}
    return ArchitectureOutcome("llama", versions, (BlockOutcome("a.B", "0" * 64, "llama", status, {}, checks),))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """An index with builds of torch, of which 2.90.0 is recorded; 2.92.0 fails. What the check is asked for."""
    calls: list[tuple[object, ...]] = []

    def versions(wheels=None, package="transformers"):
        assert package == "torch"
        return [Version(one) for one in ("2.89.0", "2.90.0", "2.90.0+cpu", "2.91.0", "2.91.0+cpu", "2.92.0")]

    def check(arch, transformers, records, wheels, numbers, require_hashes, peft, torch):
        calls.append((arch, transformers, numbers, peft, torch))
        found = outcome(torch[0], "failed" if torch == ["2.92.0"] else "passed")
        return CheckReport(
            (), (), (NumericEntry(Release("5.23.0", tmp_path, "installed"), found, f"torch {torch[0]}"),)
        )

    place = tmp_path / "torch_records.jsonl"
    TorchRecords().with_record(TorchRecord.of("2.90.0", [outcome("2.90.0")], "2026-01-02")).save(place)
    monkeypatch.setattr(torch_records, "SHIPPED_TORCH_RECORDS", place)
    monkeypatch.setattr(index, "list_versions", versions)
    monkeypatch.setattr(watch, "run_shown", check)
    return calls


def test_each_new_version_is_run_once_and_nothing_is_left_out(asked) -> None:
    result = run()
    assert result.exit_code == 1, result.output
    every = Numbers(unproven=False, record=False, seconds=TIME_LIMIT)
    assert asked == [(["*"], ["installed"], every, (), [version]) for version in ("2.91.0", "2.92.0")]
    said = " ".join(result.stdout.split())
    assert said.startswith("new of torch: 2.91.0, 2.92.0")
    assert "torch 2.91.0: 2 checks passed, 0 failed, 0 not applicable; numbers equal in 1 of 1 architectures" in said
    assert "torch 2.92.0: 1 checks passed, 1 failed, 0 not applicable; numbers equal in 0 of 1 architectures" in said
    assert "`patchkit check --all --torch 2.92.0` shows what failed" in said


def test_nothing_is_recorded_unless_it_is_asked_for(asked, tmp_path: Path) -> None:
    before = (tmp_path / "torch_records.jsonl").read_bytes()
    run()
    assert (tmp_path / "torch_records.jsonl").read_bytes() == before


def test_write_records_what_passed_and_what_failed(asked, tmp_path: Path) -> None:
    result = run("--write", "--output", str(tmp_path / "matrix.md"))
    assert result.exit_code == 1
    records = TorchRecords.load(tmp_path / "torch_records.jsonl")
    assert [(one.torch, one.passed, one.failed, one.unproven) for one in records.entries] == [
        ("2.90.0", 2, 0, ()), ("2.91.0", 2, 0, ()), ("2.92.0", 1, 1, ("llama",)),
    ]  # fmt: skip
    text = (tmp_path / "matrix.md").read_text("utf-8")
    assert "| 2.92.0 | 0 of 1 | 1 | 1 | 0 | transformers 5.23.0, PEFT 0.21.2, Python 3.11.7 |" in text
    assert "torch 2.92.0, not proven equal: llama." in text
    assert "commit it with torch_records.jsonl" in " ".join(result.stdout.split())
    assert "nothing new: no release of torch after 2.92.0" in run().stdout


def test_a_version_that_passes_is_exit_0(asked, monkeypatch) -> None:
    result = run("--since", "2.90.0", "--list")
    assert (result.exit_code, result.stdout, asked) == (0, "2.91.0\n2.92.0\n", [])
    monkeypatch.setattr(index, "list_versions", lambda wheels=None, package="": [Version("2.91.0")])
    result = run()
    assert result.exit_code == 0
    assert "`patchkit watch --torch --write` records what was proven" in " ".join(result.stdout.split())


def test_github_is_told_of_each_failure(asked) -> None:
    commands = [line for line in run("--github").stdout.splitlines() if line.startswith("::error")]
    assert len(commands) == 1


@pytest.mark.parametrize("other", ["--peft", "--static"])
def test_one_library_at_a_time(asked, other: str) -> None:
    result = run(other)
    assert result.exit_code == 2
    assert f"leave out {other}" in " ".join(result.stderr.replace("│", " ").split())
    assert asked == []
