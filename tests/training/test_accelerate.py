"""A training loop written with ``accelerate``, patched before or after ``prepare``."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import TorchDynamoPlugin
from torch.utils.data import DataLoader
from training_runs import LAYERS, assert_equal, observe, total_error

import patchkit
from patchkit.testing import FUSED_FUNCTIONS, LOW_PRECISION_RATIO

MICRO_BATCHES = 6


@pytest.fixture
def accelerator():
    """Makes an ``Accelerator``, whose state is otherwise one for the whole process."""

    def make(**options):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        return Accelerator(cpu=True, **options)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(accelerator, model, rows, when):
    """Two optimizer steps from six micro-batches."""

    def losses():
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-3)
        if when == "before":
            patchkit.apply(model, strict=True)
        prepared, optimizer_, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=4))
        if when == "after":
            patchkit.apply(prepared, strict=True)
        found = []
        for batch in loader:
            with accelerator.accumulate(prepared):
                loss = prepared(**batch, use_cache=False).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer_.step()
                optimizer_.zero_grad()
            found.append(loss.item())
        return found

    return observe(model, losses)


@pytest.mark.parametrize("when", ["before", "after"])
def test_float32(when, accelerator, lora_pair):
    plain, model, rows = lora_pair("mistral")
    reference = train(accelerator(gradient_accumulation_steps=3), plain, rows, None)
    patched = train(accelerator(gradient_accumulation_steps=3), model, rows, when)
    assert_equal(patched, reference)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, MICRO_BATCHES * LAYERS)


@pytest.mark.parametrize("regional", [False, True], ids=["whole", "regional"])
def test_compiled(regional, accelerator, lora_pair, compiler):
    """``prepare`` wraps the model, or each of its layers; the first call compiles, by then it is patched."""
    plain, model, rows = lora_pair("mistral")
    plugin = TorchDynamoPlugin(backend="eager", use_regional_compilation=regional)
    reference = train(accelerator(), plain, rows, None)
    patched = train(accelerator(dynamo_plugin=plugin), model, rows, "after")
    assert_equal(patched, reference)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, LAYERS)  # traced once
    assert compiler["stats"]["unique_graphs"] > 0
    assert not compiler["graph_break"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_bfloat16(when, accelerator, lora_pair):
    plain, model, rows = lora_pair("mistral")
    truth = train(accelerator(), lora_pair("mistral")[0], rows, None)
    reference = train(accelerator(mixed_precision="bf16"), plain, rows, None)
    patched = train(accelerator(mixed_precision="bf16"), model, rows, when)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, MICRO_BATCHES * LAYERS)
    assert total_error(reference, truth) > 1e-4
    assert total_error(patched, truth) <= LOW_PRECISION_RATIO * total_error(reference, truth)
