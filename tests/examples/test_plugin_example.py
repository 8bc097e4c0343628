"""The example plugin, installed as a stranger's package would be: found, checked, patched, and tested by its own test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stranger import Stranger, pip_install

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"

APPLY = """
import copy, json, logging
import patchkit
from acme_models.configuration_acme import AcmeConfig
from acme_models.modeling_acme import AcmeForCausalLM
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs
from patchkit.testing.tiny_models import initialise

sizes = dict(vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
model = AcmeForCausalLM(AcmeConfig(**sizes, num_key_value_heads=2, pad_token_id=0))
initialise(model)
model = add_lora(model, target_modules="all-linear").train()
reference = copy.deepcopy(model)
report = patchkit.apply(model)
inputs = tiny_inputs("llama", model)
findings = compare_runs(run(reference, inputs), run(model, inputs))
rows = sorted({(row.module_class, row.part, row.level) for row in report.rows})
print(json.dumps({"rows": rows, "equal": findings.passed, "worst": str(findings.worst)}))
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Stranger:
    site, home = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("home")
    pip_install(EXAMPLE, site, tmp_path_factory.mktemp("workshop"))
    return Stranger(site, home)


def test_it_is_listed(stranger):
    done = stranger.patchkit("archs")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("acme ")]
    assert line.split() == ["acme", "acme", "AcmeAttention", "AcmeFeedForward"]


def test_it_is_patched_in_a_fresh_process(stranger):
    done = stranger.python("-c", APPLY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["equal"], found["worst"]
    assert [tuple(row) for row in found["rows"]] == [
        ("AcmeAttention", "o", "fused"), ("AcmeAttention", "qkv", "fused"), ("AcmeFeedForward", "mlp", "fused"),
    ]  # fmt: skip


def test_its_check_is_green(stranger):
    done = stranger.patchkit("check", "--arch", "acme", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["verified"] is True
    assert [(one["package"], one["version"]) for one in found["releases"]] == [("acme_models", "0.1.0")]
    (numeric,) = found["numeric"]
    assert {(block["model"], block["status"]) for block in numeric["blocks"]} == {("AcmeForCausalLM", "passed")}
    assert {one["proof"] for one in found["results"]} == {"numeric"}


def test_its_own_test_passes_and_patchkits_for_it(stranger, tmp_path):
    done = stranger.pytest(str(EXAMPLE / "tests"), "--rootdir", str(tmp_path), "--patchkit-arch", "acme")
    assert done.returncode == 0, done.stdout
    passed = [line.split()[0] for line in done.stdout.splitlines() if " PASSED" in line]
    assert [name.rpartition("/")[2] for name in passed] == [
        "test_acme.py::test_acme",
        *(f"patchkit::acme::AcmeAttention::{what}" for what in ("qkv", "o", "numbers")),
        *(f"patchkit::acme::AcmeFeedForward::{what}" for what in ("mlp", "numbers")),
    ]
