"""DDP and FSDP2 on two processes: the patched model trains step for step as the unpatched one, and as one process."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from patchkit.testing import (
    CURVE_TOLERANCE,
    FP32_TOLERANCE,
    FUSED_FUNCTIONS,
    LOW_PRECISION_RATIO,
    relative_error,
    tiny_model,
)

STEPS, LAYERS = 3, 2
WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(kind, world, folder, *options):
    out = folder / f"{kind}.pt"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(WORKER),
                kind,
                str(rank),
                str(world),
                str(folder / f"{kind}.store"),
                str(out),
                *options,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return torch.load(out, weights_only=False)


def check_calls(plain, patched, micro_batches):
    assert plain["calls"] == {}
    in_layers = Counter(dict.fromkeys(FUSED_FUNCTIONS, STEPS * LAYERS * micro_batches))
    around_them = Counter(lora_embedding=STEPS * micro_batches, lora_linear=STEPS * micro_batches)
    assert patched["calls"] == in_layers + around_them


def check_equal(candidate, reference, tolerance):
    for key in ("losses", "norms"):
        assert candidate[key] == pytest.approx(reference[key], rel=tolerance)
    assert reference["losses"][0] != reference["losses"][-1]
    assert relative_error(candidate["update"], reference["update"]) < CURVE_TOLERANCE


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch("single", 1, tmp_path_factory.mktemp("single"))


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes(kind, alone, tmp_path):
    together = launch(kind, 2, tmp_path)
    for way, micro_batches in {"whole batches": 1, "accumulation": 2}.items():
        plain, single = together[way, "never"], alone[way, "never"]
        check_calls(single, alone[way, "before"], micro_batches)
        check_equal(alone[way, "before"], single, FP32_TOLERANCE)
        for when in ("before", "after"):
            patched = together[way, when]
            check_calls(plain, patched, micro_batches)
            check_equal(patched, plain, FP32_TOLERANCE)
            check_equal(patched, single, CURVE_TOLERANCE)
    if kind == "ddp":
        check_calls(together["trainer", "never"], together["trainer", "after"], 1)
        check_equal(together["trainer", "after"], together["trainer", "never"], FP32_TOLERANCE)
    else:
        check_mixed_precision(together, alone["whole batches", "never"])


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_without_logits(kind, tmp_path):
    """The loss takes the place of the head's function; its gradients are made in forward, and reduced in backward."""
    together = launch(kind, 2, tmp_path, "loss")
    for way, micro_batches in {"whole batches": 1, "accumulation": 2}.items():
        plain = together[way, "never"]
        for when in ("before", "after"):
            calls = together[way, when]["calls"]
            assert calls["lora_cross_entropy"] == STEPS * micro_batches
            assert calls["lora_linear"] == STEPS * micro_batches * LAYERS
            check_equal(together[way, when], plain, FP32_TOLERANCE)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_with_tiled_mlps(kind, tmp_path):
    """Backward makes gate and up again, of weights that FSDP2 has gathered for it."""
    together = launch(kind, 2, tmp_path, "memory=tiled:2")
    for way, micro_batches in {"whole batches": 1, "accumulation": 2}.items():
        plain = together[way, "never"]
        for when in ("before", "after"):
            check_calls(plain, together[way, when], micro_batches)
            check_equal(together[way, when], plain, FP32_TOLERANCE)
    if kind == "fsdp2":  # of bfloat16 inputs norms are computed again, too
        check_mixed_precision(together, together["whole batches", "never"])


def check_mixed_precision(together, truth):
    """Parameters gathered as bfloat16: no further from float32 than unpatched."""
    plain = together["bfloat16", "never"]
    upstream = relative_error(plain["update"], truth["update"])
    assert 1e-4 < upstream < 0.1
    for when in ("before", "after"):
        patched = together["bfloat16", when]
        check_calls(plain, patched, 1)
        assert relative_error(patched["update"], truth["update"]) <= LOW_PRECISION_RATIO * upstream


def launch_quantised(world, folder, model):
    out = folder / f"{world}.pt"
    worker = str(WORKER.with_name("quantised_worker.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), str(world), str(folder / "store"), str(out), str(model)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return torch.load(out, weights_only=False)


@pytest.mark.distributed
def test_fsdp2_over_four_bits(tmp_path):
    """What FSDP2 gathers is no ``Params4bit`` until the layer's own forward makes it one, so it runs upstream."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is Linux only")
    tiny_model("llama").save_pretrained(tmp_path / "model")
    alone, together = (launch_quantised(world, tmp_path, tmp_path / "model") for world in (1, 2))
    plain = together["never"]
    assert plain["calls"] == alone["never"]["calls"] == {}
    check_equal(alone["before"], alone["never"], FP32_TOLERANCE)
    for when in ("before", "after"):
        check_equal(together[when], plain, FP32_TOLERANCE)
        check_equal(together[when], alone["never"], CURVE_TOLERANCE)
    assert alone["before"]["calls"] == Counter(dict.fromkeys(FUSED_FUNCTIONS, STEPS * LAYERS))
    assert together["before"]["calls"] == together["after"]["calls"] == {}
