"""How ``patchkit check`` reports the numeric stage; the stage itself is replaced by outcomes made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of
from typer.testing import CliRunner, Result

from patchkit.check import run
from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome, CheckOutcome, Status
from patchkit.check.static import records
from patchkit.cli.main import app
from patchkit.errors import PatchkitWarning
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust import ledger
from patchkit.trust.ledger import Key, Proof, user_ledger
from patchkit.upstream.identity import source_hash

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
ATTENTION, MLP = SMALL_LLAMA.split("\n\n\n")


class FakeEnvironment:
    """Outcomes made by hand in place of models."""

    versions = VERSIONS

    def __init__(self, mlp: Status) -> None:
        self.blocks = (block("LlamaAttention", ATTENTION, "passed"), block("LlamaMLP", MLP, mlp))
        self.asked: list[str] = []
        self.silent = False

    def check(self, architectures: Sequence[str], *, jobs: int, seconds: float) -> Iterator[ArchitectureOutcome]:
        self.asked += architectures
        for name in () if self.silent else architectures:
            yield ArchitectureOutcome(name, VERSIONS, self.blocks)


def block(
    name: str, source: str, status: Status, description: str = "", module: str = "llama", outside: str = ""
) -> BlockOutcome:
    path = f"transformers.models.{module}.modeling_{module}.{name}"
    key = Key(path, source_hash(source), REWRITE_VERSION, outside, description)
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
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ledger, "SHIPPED_LEDGER", tmp_path / "ledger.jsonl")
    monkeypatch.setattr(records, "SHIPPED_RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(run, "SHIPPED_LEDGER", tmp_path / "ledger.jsonl")

    def _use(mlp: Status) -> FakeEnvironment:
        environment = FakeEnvironment(mlp)
        monkeypatch.setattr(run, "environment_of", lambda release, seconds, beside: environment)
        return environment

    return _use


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", "--arch", "llama", "-t", "./release", *arguments])


def rows(result: Result) -> list[str]:
    """Lines without what a table draws."""
    return [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]


def proven(result: Result) -> list[str]:
    """The rule and the proof of each row that has one."""
    return [" ".join(row.split()[-2:]) for row in rows(result) if row.endswith(" numeric")]


def test_equal_numbers_are_a_proof_that_is_recorded(use, tmp_path: Path) -> None:
    use("passed")
    result = check()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "verified: 3 rewritten; numbers equal in 1 of 1 architectures"
    assert proven(result) == ["qkv-together numeric", "output-call numeric", "gated-mlp numeric"]
    assert "llama LlamaAttention llama mlp fused 1/1 1.3e-06 passed" in rows(result)
    assert len(user_ledger().read_text().splitlines()) == 2


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
    assert len(user_ledger().read_text().splitlines()) == 1, "what passed is recorded all the same"


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


def test_an_architecture_without_an_outcome_is_not_verified(use) -> None:
    """Its process died, and whoever asked it did not notice."""
    use("passed").silent = True
    result = check()
    assert result.exit_code == 1
    assert "llama: no outcome came of it" in result.stdout
    assert result.stdout.splitlines()[-1] == "not verified: 3 rewritten; numbers equal in 0 of 1 architectures"


@pytest.mark.parametrize("missing", [0, 1], ids=["attention", "MLP"])
def test_numbers_of_some_blocks_are_not_those_of_all(use, missing: int) -> None:
    environment = use("passed")
    environment.blocks = (environment.blocks[1 - missing],)
    result = check()
    assert result.exit_code == 1
    assert (
        f"{('LlamaAttention', 'LlamaMLP')[missing]}: it is rewritten, but no model showed its numbers" in result.stdout
    )


ELSEWHERE = ATTENTION.replace("q_proj(hidden_states)", "q_proj(hidden_states.clone())")
FORGED = {
    "another source": block("LlamaAttention", ELSEWHERE, "passed"),
    "another class": block("GemmaAttention", ATTENTION, "passed", module="gemma"),
    "a class that there is not": block("LlamaLinear", ATTENTION, "passed"),
    "another description": block(
        "LlamaAttention", ATTENTION, "passed", description="Attention(q='k_proj', k='q_proj')"
    ),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_proof_of_what_the_release_does_not_have(use, forged: BlockOutcome) -> None:
    """What comes from a process with the release's code is believed for what stands in its text, and nothing else."""
    use("passed").blocks += (forged,)
    result = check()
    assert result.exit_code == 1
    assert f"{forged.class_name}: its numbers are of a source that transformers 5.90.0 does not have" in result.stdout
    recorded = [Proof.from_line(line).key for line in user_ledger().read_text().splitlines()]
    assert len(recorded) == 2
    assert forged.source not in {key.source for key in recorded if key.class_name == forged.class_name} or (
        forged.source == source_hash(ATTENTION) and not any(key.description for key in recorded)
    )


def test_what_a_class_calls_elsewhere_is_of_the_live_model_alone(use) -> None:
    """Norms between the projections, as in qwen3: their hash is in the proof, and no text of the class has it."""
    environment = use("passed")
    environment.blocks = (block("LlamaAttention", ATTENTION, "passed", outside="b" * 64), environment.blocks[1])
    result = check()
    assert result.exit_code == 0, result.output
    assert len(proven(result)) == 3
    assert {Proof.from_line(line).key.outside for line in user_ledger().read_text().splitlines()} == {"", "b" * 64}


def test_blocks_of_other_architectures_of_the_release_count(use, tmp_path: Path) -> None:
    """A tiny model of a vision tower has the blocks of a text model too."""
    gemma = SMALL_LLAMA.replace("Llama", "Gemma")
    folder_release(tmp_path / "release", "5.90.0", {path_of("gemma"): gemma})
    use("passed").blocks += (block("GemmaMLP", gemma.split("\n\n\n")[1], "passed", module="gemma"),)
    assert check().exit_code == 0
    assert len(user_ledger().read_text().splitlines()) == 3


@pytest.mark.parametrize("record", [False, True])
def test_where_proofs_go_is_said_and_a_checkout_is_written_only_when_asked(use, record: bool, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    shipped = tmp_path / "patchkit" / "check" / "ledger.jsonl"
    run.SHIPPED_LEDGER = shipped
    use("passed")
    result = check("--json", *(["--record"] if record else []))
    assert result.exit_code == 0, result.output
    chosen, other = (shipped, user_ledger()) if record else (user_ledger(), shipped)
    assert " ".join(result.stderr.split()) == f"proofs of 2 classes are in {chosen}"
    assert json.loads(result.stdout)["verified"] is True
    assert chosen.exists()
    assert not other.exists()


def test_an_installed_patchkit_is_no_checkout(use, tmp_path: Path) -> None:
    """And that is said before anything is run."""
    run.SHIPPED_LEDGER = tmp_path / "lib" / "patchkit" / "check" / "ledger.jsonl"
    environment = use("passed")
    result = check("--record")
    assert result.exit_code == 2
    assert "--record enters proofs into a checkout of patchkit" in result.stderr
    assert not environment.asked


def test_a_ledger_that_cannot_be_written_loses_no_result(use, tmp_path: Path) -> None:
    """The user's own; one that was asked for is an error."""
    (tmp_path / "pyproject.toml").touch()
    run.SHIPPED_LEDGER = tmp_path / "patchkit" / "check" / "ledger.jsonl"
    user_ledger().mkdir(parents=True)
    run.SHIPPED_LEDGER.mkdir(parents=True)
    use("passed")
    with pytest.warns(PatchkitWarning, match="what was proven is not remembered"):
        assert check().exit_code == 0
    result = check("--record")
    assert result.exit_code == 2
    assert "cannot be" in result.stderr


@pytest.mark.parametrize("there", [True, False])
def test_a_release_without_the_multimodal_model_has_nothing_to_verify(use, there: bool, tmp_path: Path) -> None:
    """Its text model, which is there, is not what was asked for."""
    if there:
        folder_release(tmp_path / "release", "5.90.0", {path_of("llava"): ""})
    environment = use("passed")
    result = CliRunner().invoke(app, ["check", "--arch", "llava", "-t", "./release"])
    assert environment.asked == (["llava"] if there else [])
    assert result.exit_code == (0 if there else 1)
    assert result.stdout.splitlines()[-1].startswith("verified: 3 rewritten" if there else "nothing to verify")
