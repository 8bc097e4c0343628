"""``patchkit bench`` with plugins: chosen by name like what is built in, and a broken one is no reason to stop."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from typer.testing import CliRunner

from patchkit.arch import registry
from patchkit.arch.spec import Architecture, GatedMLP
from patchkit.cli import check
from patchkit.cli.main import app
from patchkit.testing import block_costs, comparison, freed_memory, step_times

pytest_plugins = ["example_plugin"]

BROKEN = Architecture("broken", ("nothing_of_this_name",), "transformers.models.qwen3.modeling_qwen3", (GatedMLP("X"),))


@pytest.fixture
def small(monkeypatch):
    """Comparisons of small models: that their sizes are asked for is seen from the widths."""
    sizes = {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 6, "num_key_value_heads": 3}
    monkeypatch.setattr(comparison, "SMALL", sizes)
    monkeypatch.setattr(comparison, "LENGTH", 16)


def bench(path, *names):
    arguments = [word for name in names for word in ("--arch", name)]
    result = CliRunner().invoke(app, ["bench", *arguments, "--json", str(path)])
    found = json.loads(path.read_text())["results"] if path.exists() else []
    return result, {one["name"]: one for one in found}


def test_a_plugin_is_compared_like_what_is_built_in(acme, small, tmp_path):
    result, found = bench(tmp_path / "bench.json", "acm*", "llama")
    assert result.exit_code == 0, result.output
    assert list(found) == ["llama", "acme"]
    for one in found.values():
        assert one["levels"] == dict.fromkeys(("qkv", "o", "mlp"), "fused")
        assert one["gradient_error"] < 1e-4
        assert one["patched"]["bytes_kept"] < one["plain"]["bytes_kept"]
    ratio = found["acme"]["plain"]["flops"] / found["llama"]["plain"]["flops"]
    assert 0.5 < ratio < 2, "of the same sizes"


def test_one_that_is_broken_is_named_and_the_others_are_compared(acme, small, tmp_path):
    with registry.registered_also(BROKEN):
        result, found = bench(tmp_path / "bench.json", "broken", "acme")
    assert result.exit_code == 2
    assert list(found) == ["acme"]
    said = " ".join(result.stderr.split())
    assert "patchkit: error: broken: transformers has no model type 'nothing_of_this_name'" in said


def test_an_unknown_name_lists_plugins_too(acme, tmp_path):
    result, _ = bench(tmp_path / "bench.json", "acmee")
    assert result.exit_code == 2
    assert "no tiny model matches acmee. Known: llama" in " ".join(result.stderr.split())
    assert "acme" in result.stderr.rpartition("Known:")[2]


@pytest.mark.parametrize("step", [0.0, 4.0, 11.0])
def test_a_long_command_without_a_terminal_says_now_and_then_how_far_it_is(monkeypatch, capsys, step):
    clock = itertools.count(0.0, step)
    monkeypatch.setattr(check.time, "monotonic", lambda: next(clock))
    with check.progress_of("comparing") as advance:
        for done in range(6):
            advance(done, 6, f"comparing {done}" if done % 2 else None)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    every = {0.0: [], 4.0: [2, 5], 11.0: [0, 1, 2, 3, 4, 5]}[step]
    assert [line.rpartition(": ")[2] for line in lines] == [f"{done} of 6" for done in every]
    assert all(line.startswith("comparing") for line in lines)


def test_a_long_step_without_a_terminal_says_that_it_runs(monkeypatch, capsys):
    """Also if no step is ever finished."""
    monkeypatch.setattr(check, "LINE_SECONDS", 0.01)
    with check.progress_of("comparing llama") as advance:
        time.sleep(0.2)
        lines = capsys.readouterr().err.splitlines()
        assert set(lines) == {"comparing llama, still running"}
        advance(1, 3)
        capsys.readouterr()
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert set(lines) == {"comparing llama: 1 of 3, still running"}
    time.sleep(0.05)
    assert capsys.readouterr().err == "", "it ends with the command"


def test_the_hosts_time_of_every_block(monkeypatch, tmp_path):
    """Of blocks that are patched: the same numbers as PEFT's, from fewer bytes kept."""
    kept = {name: block_costs.BLOCK_PRECISIONS[name] for name in ("float32", "the same under autocast")}
    monkeypatch.setattr(block_costs, "BLOCK_PRECISIONS", kept)
    monkeypatch.setattr(step_times, "BLOCK_PRECISIONS", kept)
    monkeypatch.setattr(step_times, "SIZES", ((64, 4),))
    # For a process that ends with the benchmark, and not for this one.
    monkeypatch.setattr(freed_memory, "keep_freed_memory", lambda: True)
    path = tmp_path / "host.json"
    result = CliRunner().invoke(app, ["bench", "--host", "--steps", "2", "--json", str(path)])
    assert result.exit_code == 0, result.output
    found = [block_costs.HostTime(**one) for one in json.loads(path.read_text())["host"]]
    assert [one[:3] for one in found] == [
        (part, name, dropout) for name in kept for dropout in (0.0, 0.1) for part in block_costs.TIMED_PARTS
    ]
    assert all(one.plain > 0 and one.patched > 0 for one in found)
    assert all(f"{name} " in result.stdout for name in kept)
    assert "layer" in result.stdout
    steps = [step_times.StepTime(**one) for one in json.loads(path.read_text())["steps"]]
    assert [one[:4] for one in steps] == [(64, 4, name, dropout) for name in kept for dropout in (0.0, 0.1)]
    assert all(one.plain > 0 and one.patched > 0 for one in steps)
    assert "64 wide, 4 tokens" in result.stdout
    assert json.loads(path.read_text())["settings"]["freed_memory_kept"] is True
