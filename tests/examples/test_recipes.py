"""The recipes run, and train fused; what they save is loaded by a model that was never patched."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

TRAINS = ["loop", "dora", "qlora", "vision"]


def recipe(name):
    return importlib.import_module(f"examples.recipes.{name}").main()


@pytest.mark.parametrize("name", TRAINS)
@pytest.mark.filterwarnings("ignore")
def test_it_trains_fused(name):
    if name == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed (extra: bnb)")
    report, losses = recipe(name)
    assert report.share_fused == 1.0, report
    assert len(losses) == 3
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore")
def test_each_adapter_gives_logits_of_its_own():
    logits = recipe("adapters")
    assert list(logits) == ["poems", "laws", "poems + laws", "none"]
    found = list(logits.values())
    for index, one in enumerate(found):
        assert not any(torch.allclose(one, other) for other in found[:index])


@pytest.mark.filterwarnings("ignore")
def test_what_is_saved_is_what_was_trained():
    found = recipe("saving")
    trained = found.pop("trained")
    assert list(found) == ["adapter", "state", "merged"]
    for way, logits in found.items():
        torch.testing.assert_close(logits, trained, msg=way)


@pytest.mark.distributed
def test_two_processes_of_fsdp2():
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run([*command, "-m", "examples.recipes.fsdp2"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "LlamaForCausalLM (llama): qkv 2 fused; o 2 fused; mlp 2 fused" in result.stdout


ZERO = {
    "2": "LlamaForCausalLM (llama): qkv 2 fused; o 2 fused; mlp 2 fused\n[",
    "3": "o_proj: torch.nn.functional.linear was replaced by deepspeed.runtime.zero.linear.zero3_linear_wrap",
}


@pytest.mark.distributed
@pytest.mark.parametrize("stage", ZERO)
def test_two_processes_of_deepspeed(stage):
    pytest.importorskip("deepspeed", reason="DeepSpeed compiles its operations first; CI installs it once a week")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "examples.recipes.deepspeed_zero", stage]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert ZERO[stage] in result.stdout


def test_every_recipe_is_run_here():
    names = {path.stem for path in (ROOT / "examples" / "recipes").glob("*.py")}
    assert names == {*TRAINS, "adapters", "saving", "fsdp2", "deepspeed_zero", "model", "__init__"}
