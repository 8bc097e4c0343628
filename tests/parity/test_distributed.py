"""DDP and FSDP2 on two processes: the patched model trains step for step as the unpatched one, and as one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

STEPS, LAYERS = 3, 2
FUSED = ("lora_projections", "lora_linear", "lora_gated_mlp")
WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(kind, world, folder):
    out = folder / f"{kind}.json"
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), kind, str(rank), str(world), str(folder / f"{kind}.store"), str(out)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch("single", 1, tmp_path_factory.mktemp("single"))


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(kind, alone, tmp_path):
    together = launch(kind, 2, tmp_path)
    assert together["False"]["fused_calls"] == []
    assert together["True"]["fused_calls"] == alone["True"]["fused_calls"]
    assert Counter(together["True"]["fused_calls"]) == dict.fromkeys(FUSED, STEPS * LAYERS)
    assert alone["False"]["losses"][0] != alone["False"]["losses"][-1]
    for key in ("losses", "norms"):
        unpatched = together["False"][key]
        assert together["True"][key] == pytest.approx(unpatched, rel=1e-5)
        assert together["True"][key] == pytest.approx(alone["False"][key], rel=1e-4)
        assert alone["True"][key] == pytest.approx(alone["False"][key], rel=1e-5)
