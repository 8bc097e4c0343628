"""How ``patchkit check`` reports the numeric stage; the stage itself is replaced by outcomes made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of
from typer.testing import CliRunner, Result

from patchkit.check import ledger, numeric_stage, records
from patchkit.check.ledger import Key, Proof
from patchkit.check.numeric import ArchitectureOutcome, BlockOutcome, CheckOutcome, Status
from patchkit.check.source_identity import source_hash
from patchkit.cli.main import app
from patchkit.rewrite import REWRITE_VERSION

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
ATTENTION, MLP = SMALL_LLAMA.split("\n\n\n")


class FakeEnvironment:
    """Outcomes made by hand in place of models."""

    def __init__(self, mlp: Status) -> None:
        self.mlp = mlp
        self.asked: list[str] = []

    def check(self, architectures: Sequence[str], *, jobs: int) -> Iterator[ArchitectureOutcome]:
        self.asked += architectures
        for name in architectures:
            blocks = (block("LlamaAttention", ATTENTION, "passed"), block("LlamaMLP", MLP, self.mlp))
            yield ArchitectureOutcome(name, VERSIONS, blocks)


def block(name: str, source: str, status: Status) -> BlockOutcome:
    key = Key(f"transformers.models.llama.modeling_llama.{name}", source_hash(source), REWRITE_VERSION)
    proof = Proof(key, "numeric", {"mlp": "fused"}, {"forward_backward": 1.3e-6}, VERSIONS, "2026-01-02")
    reason = "" if status == "passed" else "forward_backward: gradient of x differs by 0.5"
    checks = {"forward_backward": CheckOutcome(status, 1.3e-6 if status == "passed" else 0.5, reason)}
    line = proof.to_line() if status == "passed" else None
    return BlockOutcome(key.class_name, key.source, "llama", status, {"mlp": "fused"}, checks, reason, line)


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the environment of every release a fake one; ledger and records are the test's own."""
    folder_release(tmp_path / "release", "5.90.0", {path_of("llama"): SMALL_LLAMA})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ledger, "SHIPPED", tmp_path / "ledger.jsonl")
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "records.jsonl")
    monkeypatch.setattr(numeric_stage, "ledger_to_write", lambda: tmp_path / "ledger.jsonl")

    def _use(mlp: Status) -> FakeEnvironment:
        environment = FakeEnvironment(mlp)
        monkeypatch.setattr(numeric_stage, "_environment", lambda release: environment)
        return environment

    return _use


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", "--arch", "llama", "-t", "./release", *arguments])


def test_equal_numbers_are_a_proof_that_is_recorded(use, tmp_path: Path) -> None:
    use("passed")
    result = check()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "verified: 3 rewritten; numbers equal in 1 of 1 architectures"
    assert result.stdout.count("│ numeric │") == 3
    assert "│ llama        │ LlamaAttention │ llama │ mlp fused │    1/1 │     1.3e-06 │ passed │" in result.stdout
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("status", ["failed", "inapplicable"])
def test_numbers_that_are_not_shown_to_be_equal_fail(use, status: Status, tmp_path: Path) -> None:
    use(status)
    result = check("--junit", "junit.xml", "--github", "--json")
    assert result.exit_code == 1
    text, _, commands = result.stdout.partition("\n::")
    data = json.loads(text)
    assert data["verified"] is False
    assert [entry["status"] for entry in data["numeric"]] == [status]
    assert commands.startswith("error file=patchkit/arch/llama.py,title=llama%3A numbers not proven equal")
    assert f"LlamaMLP in llama: {status}: forward_backward: gradient of x differs by 0.5" in commands
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[1]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("transformers 5.90.0 numeric", "2", "1")
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1, "what passed is recorded all the same"


def test_what_is_proven_already_can_be_left_out(use) -> None:
    environment = use("passed")
    for expected in (["llama"], ["llama"]):
        assert check("--unproven").exit_code == 0
        assert environment.asked == expected
    assert check().exit_code == 0
    assert environment.asked == ["llama", "llama"]


def test_an_architecture_that_the_release_does_not_have_is_not_run(use) -> None:
    environment = use("passed")
    result = check("--arch", "gemma")
    assert result.exit_code == 0
    assert environment.asked == ["llama"]


def test_static_runs_no_model(use) -> None:
    environment = use("failed")
    assert check("--static").exit_code == 0
    assert environment.asked == []
