"""The example with trainers, on its small random model."""

from __future__ import annotations

import json

import pytest
import typer
from peft import PeftModel
from typer.testing import CliRunner

pytest.importorskip("trl", reason="TRL 1.16 needs Python 3.11 and transformers 4.56")

from examples.demo.weights import small_random


@pytest.mark.parametrize("trainer", ["sft", "dpo", "grpo", "hugging-face"])
def test_trains_patched_and_saves_an_adapter(trainer, tmp_path):
    from examples.trainer.__main__ import main

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--steps", "2", "--batch", "2", "--output", str(tmp_path), "--trainer", trainer])
    assert result.exit_code == 0, result.output
    assert "qkv 4 fused; o 4 fused; mlp 4 fused" in " ".join(result.output.split())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 16
    assert PeftModel.from_pretrained(small_random().load(), tmp_path).peft_config["default"].r == 16
