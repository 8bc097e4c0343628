"""The parity contract of MLPs that keep less: gate and up made again, at once or a tile of tokens at a time."""

from __future__ import annotations

import functools

import pytest

import patchkit
from patchkit.testing import CHECKS, TINY_MODELS, add_lora, run_checks, tiny_inputs, tiny_model

WAYS = ["recompute", "tiled:2"]
"""The tiny inputs have 24 tokens: two tiles of 16 and of 8."""
SHORT = ("forward_backward", "dropout", "mlp_input_shapes", "checkpointing_reentrant")


@functools.lru_cache(maxsize=2)
def made(name):
    model = add_lora(tiny_model(name)).train()
    return model, tiny_inputs(name, model)


def assert_passes(name, names, device, **options):
    model, inputs = made(name)

    def patch(model):
        report = patchkit.apply(model, trust="always", **options)
        mlps = [row for row in report.rows if row.part == "mlp" and row.level == "fused"]
        assert {row.memory for row in mlps} <= {options["memory"]}
        return report

    results = run_checks(model, inputs, patch, revert=patchkit.revert, names=names, device=device)
    assert {result.check: result.findings for result in results if result.status == "failed"} == {}
    assert any(result.passed for result in results)


@pytest.mark.parametrize("memory", WAYS)
@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.filterwarnings("ignore")
def test_every_architecture(name, memory, device):
    assert_passes(name, SHORT, device, memory=memory)


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in SHORT])
@pytest.mark.filterwarnings("ignore")
def test_the_whole_contract(check, device):
    assert_passes("gemma3", [check], device, memory="tiled:2")


@pytest.mark.parametrize("check", ["checkpointing_non_reentrant", "compile", "autocast_bfloat16_base", "bfloat16"])
@pytest.mark.filterwarnings("ignore")
def test_recomputation(check, device):
    assert_passes("llama", [check], device, memory="recompute")
