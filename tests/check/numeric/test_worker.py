"""The numeric stage: the contract for an architecture as plain data, and as a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from edited_upstream import RENAMED, edited_llama, swapping_rewriter
from trap_folder import set_traps, sprung

from patchkit.arch.registry import architectures
from patchkit.binding import classes
from patchkit.check.numeric.__main__ import _text
from patchkit.check.numeric.outcomes import NUMERIC_CHECKS, ArchitectureOutcome
from patchkit.check.numeric.worker import check_model
from patchkit.testing import tiny_models_of
from patchkit.trust.key import key_of
from patchkit.trust.ledger import read_proofs

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def llama():
    return check_model("llama", "llama")


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
    monkeypatch.setattr(classes, "rewrite", swapping_rewriter)
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
    def missing(name):
        raise ValueError(f"transformers 4.0 has no {name}")

    monkeypatch.setattr("patchkit.testing.tiny_models._from_transformers", missing)
    outcome = check_model("llama", "" if failure == "no recipe" else "llama")
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


def process(*arguments, **options):
    command = [sys.executable, "-W", "ignore", "-m", "patchkit.check.numeric", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_as_a_process_with_two_workers(tmp_path):
    """Outcomes are lines of stdout; proofs go into the ledger that is named. Nothing of the current folder is run."""
    path, traps = tmp_path / "ledger.jsonl", set_traps(tmp_path / "traps")
    arguments = ["--arch", "qwen2", "--arch", "gem*2", "--jobs", "2", "--json", "--ledger", str(path)]
    # As an installed command, which has its own folder first on the path, where -m has the current one.
    script = tmp_path / "command"
    script.write_text("import sys; from patchkit.check.numeric.__main__ import main; sys.exit(main())")
    result = subprocess.run([sys.executable, script, *arguments], cwd=traps, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    outcomes = [ArchitectureOutcome.from_json(line) for line in result.stdout.splitlines()]
    assert {outcome.architecture for outcome in outcomes} == {"qwen2", "gemma2"}
    assert {outcome.status for outcome in outcomes} == {"passed"}
    assert set(read_proofs(path)) == {proof.key for outcome in outcomes for proof in outcome.proofs}
    assert not sprung(traps)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "gema3"], "patchkit: error: unknown architecture 'gema3'; did you mean gemma3"),
        (["--arch", "*nothing*"], "no architecture matches '*nothing*'"),
        (["--architecture", "x", "--bad"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, said):
    result = process(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout


FORGED = {
    "another's proof": lambda data, block: block.update(source="0" * 64),
    "another class": lambda data, block: block.update(class_name="transformers.models.llama.modeling_llama.LlamaMLP"),
    "no class": lambda data, block: block.update(class_name="../../etc"),
    "passed with a failed check": lambda data, block: block["checks"]["eval"].update(status="failed"),
    "passed without its first check": lambda data, block: block["checks"]["forward_backward"].update(
        status="inapplicable"
    ),
    "passed with a check left out": lambda data, block: block["checks"].pop("dropout"),
    "a check that there is not": lambda data, block: block["checks"].update(more=block["checks"]["eval"]),
    "passed at upstream level": lambda data, block: block.update(levels={"qkv": "upstream"}),
    "passed without a proof": lambda data, block: block.update(proof=None),
    "failed with a proof": lambda data, block: block.update(status="failed"),
    "a status that there is not": lambda data, block: block.update(status="verified"),
    "a proof that is none": lambda data, block: block.update(proof="{}"),
    "a proof on the spot": lambda data, block: block.update(proof=block["proof"].replace('"numeric"', '"spot"')),
    "a proof of other levels": lambda data, block: block.update(proof=block["proof"].replace('"fused"', '"alone"', 1)),
    "a proof with an error below zero": lambda data, block: block.update(proof=block["proof"].replace('"eval": ', '"eval": -')),
    "a proof of other versions": lambda data, block: block.update(proof=block["proof"].replace('"torch": "2', '"torch": "9')),
    "other versions": lambda data, block: data["versions"].update(transformers="9.9.9"),
    "no version": lambda data, block: data["versions"].pop("peft"),
    "a number as text": lambda data, block: block["checks"]["eval"].update(error="0"),
    "a list as object": lambda data, block: block.update(levels=[]),
    "an object as list": lambda data, block: data.update(blocks={}),
    "nothing": lambda data, block: data.clear(),
}  # fmt: skip


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_what_contradicts_itself_is_no_outcome(llama, forge):
    """It comes from a process that ran the release's code."""
    data = json.loads(llama.to_json())
    attention = next(block for block in data["blocks"] if "qkv" in block["levels"])
    forge(data, attention)
    with pytest.raises(ValueError, match=r".+"):
        ArchitectureOutcome.from_json(json.dumps(data))


@pytest.mark.parametrize("line", ["", "[]", "1", '"llama"', "{", "[" * 100_000, '{"status": NaN}'])
def test_what_is_no_outcome_at_all(line):
    with pytest.raises(ValueError, match=r".+"):
        ArchitectureOutcome.from_json(line)


def test_text(llama):
    assert _text(llama).splitlines()[1:] == [
        "  LlamaAttention in llama: passed (qkv fused, o fused)",
        "  LlamaMLP in llama: passed (mlp fused)",
    ]


def test_a_model_runs_on_the_device_that_is_named(llama, monkeypatch):
    from patchkit.testing import devices

    moved = []
    original = devices.on_device
    monkeypatch.setattr(devices, "on_device", lambda *given: moved.append(given[2]) or original(*given))
    found = check_model("llama", "llama", "cpu")
    assert moved == ["cpu"]
    assert [(block.class_name, block.status) for block in found.blocks] == [
        (block.class_name, block.status) for block in llama.blocks
    ]


def test_a_device_that_is_not_there_is_a_problem_of_the_model():
    found = check_model("llama", "llama", "meta")
    assert not found.blocks
    assert "'meta' holds no numbers" in found.problems["llama"]
