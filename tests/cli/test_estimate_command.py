"""``patchkit estimate``: a table or JSON of a configuration, and clear refusals."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from patchkit.cli.estimate import DtypeChoice, OptimizerChoice
from patchkit.cli.main import app
from patchkit.estimation.optimizers import OPTIMIZERS
from patchkit.testing import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", num_hidden_layers=4).config.save_pretrained(folder)
    return folder


def run(*words):
    return CliRunner().invoke(app, ["estimate", *map(str, words)])


def test_a_table_of_one_length(config):
    result = run(config, "--tokens", 32, "--option", "loss=true", "--rank", 4, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "LlamaForCausalLM, 1 × 32 tokens" in result.stdout
    assert "patched, loss=True, checkpointed" in result.stdout


def test_json_of_several_lengths(config):
    words = ["--tokens", "16..64", "--batch", 2, "-o", "loss=true", "-o", "mlp=false", "--json"]
    result = run(config / "config.json", *words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(one["tokens"], one["batch"]) for one in found] == [(16, 2), (32, 2), (64, 2)]
    assert found[0]["variants"][2]["options"] == {"loss": True, "mlp": False}
    kept = [one["variants"][0]["bytes_kept"] for one in found]
    assert kept == sorted(kept)
    assert kept[2] - kept[1] == 2 * (kept[1] - kept[0])  # nothing here is of tokens × tokens


def test_a_table_of_several_lengths(config):
    result = run(config, "--tokens", "16,32", "-o", "loss=true", "--card", "4MiB", "--attention", "flash_attention_2")
    assert result.exit_code == 0, result.output
    assert "longest context" in result.stdout
    assert " → " in result.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "give a CONFIG or --shape, one of them"),
        (("CONFIG", "--shape", "llama-8b"), "one of them"),
        (("--shape", "llama-9b"), "there is no shape 'llama-9b'; there are llama-8b, gemma-3-1b"),
        (("--shape", "llama-8b", "--tokens", "many"), "--tokens 'many' is no number of tokens"),
        (("--shape", "llama-8b", "--tokens", "0"), "is no number of tokens"),
        (("--shape", "llama-8b", "--tokens", "64..8"), "is no number of tokens"),
        (("--shape", "llama-8b", "--option", "loss"), "--option 'loss' has no value; write loss=true"),
        (("--shape", "llama-8b", "--option", "los=true"), "unknown option 'los'; did you mean 'loss'?"),
        (("--shape", "llama-8b", "--card", "big"), "'big' is no size of memory"),
        (("--shape", "llama-8b", "--targets", "nothing"), "no model with adapters can be made"),
    ],
)
def test_refusals(words, text):
    result = run(*words)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


def test_choices_are_those_there_are():
    assert [one.value for one in OptimizerChoice] == list(OPTIMIZERS)
    assert "bfloat16" in [one.value for one in DtypeChoice]
