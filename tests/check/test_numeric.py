"""The numeric stage: the contract for an architecture as plain data, and as a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from edited_upstream import RENAMED, edited_llama, swapping_rewriter

from patchkit import binding
from patchkit.arch.registry import architectures
from patchkit.check import numeric
from patchkit.check.identity import key_of
from patchkit.check.ledger import read_proofs
from patchkit.check.numeric import NUMERIC_CHECKS, ArchitectureOutcome, check_architectures, check_model
from patchkit.errors import UnknownArchitectureError
from patchkit.testing import tiny_models_of

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def llama():
    (outcome,) = check_architectures(["llama"])
    return outcome


def test_an_architecture_passes(llama):
    assert (llama.architecture, llama.status) == ("llama", "passed")
    assert [block.class_name.rpartition(".")[2] for block in llama.blocks] == ["LlamaAttention", "LlamaMLP"]
    assert [dict(block.levels) for block in llama.blocks] == [{"qkv": "fused", "o": "fused"}, {"mlp": "fused"}]
    for block in llama.blocks:
        assert tuple(sorted(block.checks)) == tuple(sorted(NUMERIC_CHECKS))
        assert {outcome.status for outcome in block.checks.values()} == {"passed"}
        assert 0 < block.checks["forward_backward"].error <= 1e-5


def test_its_proofs_are_for_the_ledger(llama):
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

    proofs = {proof.key: proof for proof in llama.proofs}
    assert set(proofs) == {key_of(LlamaAttention), key_of(LlamaMLP)}
    for proof in proofs.values():
        assert proof.stage == "numeric"
        assert proof.versions == llama.versions
        assert set(proof.versions) == {"transformers", "torch", "peft", "python"}


def test_json_and_back(llama):
    line = llama.to_json()
    assert "\n" not in line
    assert json.loads(line)["status"] == "passed"
    assert ArchitectureOutcome.from_json(line) == llama


def test_a_wrong_rewrite_fails_and_names_the_class_and_the_check(tmp_path, monkeypatch):
    module = edited_llama(tmp_path, monkeypatch, RENAMED)
    monkeypatch.setattr(binding, "rewrite", swapping_rewriter)
    monkeypatch.setattr("patchkit.testing.tiny_models.transformers.LlamaForCausalLM", module.LlamaForCausalLM)
    outcome = check_model("llama", "llama")
    attention, mlp = outcome.blocks
    assert (outcome.status, attention.status, mlp.status) == ("failed", "failed", "passed")
    assert "gradient of" in attention.reason
    assert attention.checks["forward_backward"].status == "failed"
    assert attention.proof is None
    assert attention.checks["eval"].status == "failed"
    assert mlp.proof is not None
    assert len(outcome.proofs) == 1


@pytest.mark.parametrize("failure", ["no such model", "no recipe"])
def test_what_cannot_be_built_is_no_pass(monkeypatch, failure):
    if failure == "no recipe":
        monkeypatch.setattr("patchkit.testing.tiny_models_of", lambda _: ())
    else:

        def missing(name):
            raise ValueError(f"transformers 4.0 has no {name}")

        monkeypatch.setattr("patchkit.testing.tiny_models._from_transformers", missing)
    (outcome,) = check_architectures(["llama"])
    assert outcome.status == "inapplicable"
    assert not outcome.proofs
    expected = "no recipe" if failure == "no recipe" else "transformers 4.0 has no Llama"
    assert expected in "".join(outcome.problems.values())
    assert ArchitectureOutcome.from_json(outcome.to_json()) == outcome


def test_every_architecture_has_a_tiny_model():
    assert all(tiny_models_of(name) for name in architectures())


def test_vision_towers_are_patched_too():
    outcome = check_model("pixtral", "mistral3")
    assert outcome.status == "passed", outcome
    assert {block.class_name.rpartition(".")[2] for block in outcome.blocks} == {
        "MistralAttention", "MistralMLP", "PixtralAttention", "PixtralMLP",
    }  # fmt: skip


def test_unknown_architectures_are_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(numeric, "check_model", lambda *_: pytest.fail("it ran"))
    with pytest.raises(UnknownArchitectureError, match="did you mean llama"):
        list(check_architectures(["qwen2", "lama"]))


def process(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "patchkit.check.numeric", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_as_a_process_in_two_processes(tmp_path):
    """Outcomes are lines of stdout; proofs go into the ledger that is named."""
    path = tmp_path / "ledger.jsonl"
    result = process("--arch", "qwen2", "--arch", "gem*2", "--jobs", "2", "--json", "--ledger", str(path))
    assert result.returncode == 0, result.stderr
    outcomes = [ArchitectureOutcome.from_json(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert {outcome.architecture for outcome in outcomes} == {"qwen2", "gemma2"}
    assert {outcome.status for outcome in outcomes} == {"passed"}
    assert set(read_proofs(path)) == {proof.key for outcome in outcomes for proof in outcome.proofs}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "gema3"], "patchkit: error: unknown architecture 'gema3'; did you mean gemma3"),
        (["--arch", "*nothing*"], "unknown architecture '*nothing*'"),
        (["--architecture", "x", "--bad"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, said):
    result = process(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_text(llama):
    assert numeric._text(llama).splitlines()[1:] == [
        "  LlamaAttention in llama: passed (qkv fused, o fused)",
        "  LlamaMLP in llama: passed (mlp fused)",
    ]
