"""``patchkit tune``: what is shown, kept and refused, with answers that no device gave."""

from __future__ import annotations

import json

import pytest
import torch
from own_cache import own_cache as own_cache
from typer.testing import CliRunner

from patchkit.cli import tune as command
from patchkit.cli.main import app
from patchkit.tuning import record
from patchkit.tuning.questions import Answer, Setting, Shape, Tried
from patchkit.tuning.record import Tuned
from patchkit_kernels.ops.launch_sizes import LaunchSizes, Tile

H200 = {"device": "NVIDIA H200", "runtime": "12.8", "torch": "2.13.0", "triton": "3.7.1", "kernels": "ab"}
ANSWERS = (
    Answer(
        "activations: tile",
        (Tried("1024 elements, 4 warps", 412.3, 1.0), Tried("512 elements, 4 warps", 420.0, 1.02)),
        0,
    ),
    Answer(
        "rank-r products: tile",
        (
            Tried("64 × 32, 4 warps", 300.0, 1.0),
            Tried("32 × 64, 4 warps", 240.0, 0.8),
            Tried("64 × 64", reason="no room"),
        ),
        1,
    ),
)


@pytest.fixture
def device(monkeypatch):
    """A device that answers at once."""
    asked = []

    def tune(setting, before, after):
        asked.append(setting)
        for answer in ANSWERS:
            before(answer.title)
            after(answer)
        return Tuned(
            setting.shape, "2026-11-23", LaunchSizes(gated_low_rank=Tile(32, 64, 4)), {"bf16x3": True}, ANSWERS
        )

    monkeypatch.setattr(command, "require_device", lambda *given: None)
    monkeypatch.setattr(record, "described", lambda device: H200)
    monkeypatch.setattr("patchkit.tuning.tune.tune", tune)
    return asked


def run(*arguments: str):
    return CliRunner().invoke(app, ["tune", *arguments], env={"COLUMNS": "120"})


def test_what_is_found_is_shown_and_kept(device):
    result = run()
    assert result.exit_code == 0, result.output
    assert device == [Setting("cuda", Shape("llama-8b", 4096, 14336, 4096), 15)]
    first, *rows = [line.strip() for line in result.stdout.splitlines()]
    assert first == "NVIDIA H200, llama-8b, 4096 tokens, 2026-11-23"
    assert "as usual" in next(row for row in rows if row.startswith("activations"))
    (tile,) = [row for row in rows if row.startswith("rank-r products: tile") and "no room" not in row]
    assert tile.split()[-6:] == ["32", "×", "64,", "4", "warps", "0.80"]
    assert "rank-r products: tile: 64 × 64 did not count: no room" in rows
    assert "tiles: gated_low_rank: 32 × 64, 4 warps" in rows
    assert "ways: bf16x3 = True" in rows
    assert rows[-1].startswith("kept: ")
    again = run("--show")
    assert again.exit_code == 0
    assert [line.strip() for line in again.stdout.splitlines()] == [first, *rows[:-2]]


def test_nothing_is_kept_of_a_dry_run(device, tmp_path):
    path = tmp_path / "tuned.json"
    arguments = ("--dry-run", "--json", str(path), "--shape", "llama-8b", "--tokens", "512", "--rounds", "3")
    result = run(*arguments, "--device", "cuda:1")
    assert result.exit_code == 0, result.output
    assert "kept" not in result.stdout
    assert device == [Setting("cuda:1", Shape("llama-8b", 4096, 14336, 512), 3)]
    data = json.loads(path.read_text("utf-8"))
    assert data["device"] == "NVIDIA H200"
    assert Tuned.from_json(data).answers == ANSWERS
    result = run("--show")
    assert result.exit_code == 1
    assert "NVIDIA H200 was not tuned with these versions" in result.stdout


def test_a_cpu_has_nothing_to_tune():
    result = run("--device", "cpu")
    assert result.exit_code == 2
    assert "On a CPU torch's own operations run, and there is nothing to tune." in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so():
    result = run()
    assert result.exit_code == 2
    assert "there is no device 'cuda' here" in result.stderr
    assert "nothing to tune" in result.stderr
    assert "--device cpu works" not in result.stderr


def test_without_triton_it_says_so(device, monkeypatch):
    def missing(_):
        raise ImportError("triton")

    monkeypatch.setattr(record, "described", missing)
    result = run()
    assert result.exit_code == 2
    assert "triton is not installed" in result.stderr


def test_an_unknown_shape_is_said(device):
    result = run("--shape", "lama-8b")
    assert result.exit_code == 2
    assert "did you mean 'llama-8b'" in result.stderr
