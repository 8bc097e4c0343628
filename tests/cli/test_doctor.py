"""``patchkit doctor``, on scripts as users write them; each in a process of its own, as a script runs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from patchkit.cli import doctor as module
from patchkit.cli.main import app

ROOT = Path(__file__).parents[2]

MAKES_A_MODEL = """
import sys
import patchkit
from patchkit.testing import add_lora, tiny_inputs, tiny_model

model = add_lora(tiny_model("llama"))
"""

TRAINS = """
assert sys.argv[1:] == ["--rank", "8"] and __name__ == "__main__"
print("of the script")
model(**tiny_inputs("llama", model)).loss.backward()
print("not reached")
"""


def doctor(folder, *lines, arguments=("--", "--rank", "8")):
    script = folder / "train.py"
    script.write_text("".join(textwrap.dedent(one) for one in lines))
    command = [sys.executable, "-W", "ignore", "-m", "patchkit.cli.main", "doctor", str(script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_everything_is_fused(tmp_path):
    result = doctor(tmp_path, MAKES_A_MODEL, "patchkit.apply(model)\n", TRAINS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("LlamaForCausalLM (llama): qkv 2 fused; o 2 fused; mlp 2 fused")
    assert "Everything that has an adapter runs fused." in result.stdout
    assert "of the script" in result.stderr
    assert "not reached" not in result.stdout + result.stderr


def test_apply_is_missing(tmp_path):
    result = doctor(tmp_path, MAKES_A_MODEL, TRAINS)
    assert result.returncode == 1
    assert result.stdout.startswith("patchkit.apply was not called on this model.")
    assert "qkv 2 fused" in result.stdout


def test_what_stops_it_is_named_with_its_remedy(tmp_path):
    hooks = """
    patchkit.apply(model)
    for name, module in model.named_modules():
        if name.endswith("self_attn.q_proj"):
            module.register_forward_hook(lambda *_: None)
        if name.endswith("layers.1.mlp"):
            module.forward = lambda x, mlp=module: type(mlp).forward(mlp, x)
    """
    result = doctor(tmp_path, MAKES_A_MODEL, hooks, TRAINS)
    assert result.returncode == 1
    assert "1. 2 of 6 parts: q_proj: a forward hook is registered on it\n   Remove the hook" in result.stdout
    assert "\n2. 1 of 6 parts: " in result.stdout


def test_source_that_apply_has_to_verify_first(tmp_path):
    """It is differentiated then, on a tiny model, which is no step of the script."""
    edited = """
    import inspect, pathlib, transformers.models.llama.modeling_llama as upstream
    text = inspect.getsource(upstream.LlamaMLP).replace("LlamaMLP", "OwnMLP").replace("down_proj = self", "made = self")
    pathlib.Path(__file__).with_name("own.py").write_text(
        "from torch import nn\\nfrom transformers.activations import ACT2FN\\n\\n" + text.replace("return down_proj", "return made")
    )
    import own
    for module in model.modules():
        if type(module) is upstream.LlamaMLP:
            module.__class__ = own.OwnMLP
    patchkit.apply(model)
    """
    result = doctor(tmp_path, MAKES_A_MODEL, edited, TRAINS)
    assert result.returncode in (0, 1), result.stderr
    assert "OwnMLP" in result.stdout
    assert "before a backward" not in result.stdout


@pytest.mark.parametrize(
    ("lines", "arguments", "said"),
    [
        (["print(1)\n"], [], "made no model with adapters before its end."),
        (["raise SystemExit(3)\n"], [], "before exit code 3."),
        (["import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n"], [], "before exit code 2."),
        (["1 / 0\n"], [], "before ZeroDivisionError: division by zero."),
        (["import torch\ntorch.ones(1, requires_grad=True).sum().backward()\n"], [], "before its first backward."),
    ],
    ids=["ends", "exits", "wants arguments", "raises", "has no adapters"],
)
def test_without_a_model(lines, arguments, said, tmp_path, monkeypatch):
    """In this process, in which other tests' models may be alive."""
    monkeypatch.setattr(module, "adapted_models", list)
    script = tmp_path / "train.py"
    script.write_text("".join(lines))
    before = sys.argv, list(sys.path), torch.autograd.backward
    result = CliRunner().invoke(app, ["doctor", str(script), *arguments])
    assert (sys.argv, sys.path, torch.autograd.backward) == before
    assert result.exit_code == 2
    assert said in result.stderr
    assert "arguments that it needs after --" in result.stderr


def test_a_script_that_fails_with_a_model(tmp_path):
    result = doctor(tmp_path, MAKES_A_MODEL, "patchkit.apply(model)\nraise ValueError('no data')\n", arguments=[])
    assert result.returncode == 0
    assert result.stdout.startswith("The script came to ValueError: no data before a backward.")


def test_there_is_no_such_script(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "none.py")])
    assert result.exit_code == 2
    assert "does not exist" in " ".join(result.stderr.replace("│", " ").split())
