"""``transformers.Trainer`` with ``patchkit.TrainerCallback``: step for step what it is without."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch._dynamo.eval_frame import OptimizedModule
from training_runs import LAYERS, RecordsLosses, assert_equal, run_trainer, total_error

import patchkit
from patchkit.testing import FUSED_FUNCTIONS, LOW_PRECISION_RATIO

STEPS, BATCH = 4, 3


class Trainer(RecordsLosses, transformers.Trainer):
    pass


def arguments(folder, **changes):
    # A large epsilon, because Adam's first steps are otherwise the signs of gradients, noise included.
    values = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    return transformers.TrainingArguments(**values | changes)


def both(pair, folder, **changes):
    """The trainings of the unpatched copy and of the model that the callback patches."""
    plain, model, rows = pair
    callback = patchkit.TrainerCallback(strict=True)
    reference = Trainer(plain, arguments(folder, **changes), train_dataset=rows)
    trainer = Trainer(model, arguments(folder, **changes), train_dataset=rows, callbacks=[callback])
    result = run_trainer(reference), run_trainer(trainer)
    assert {row.level for row in callback.report.rows} == {"fused"}
    return result


# How many forwards of a layer there are for each micro-batch: checkpointing runs them again in backward.
CASES = {
    "plain": ({}, 1),
    "accumulation": ({"gradient_accumulation_steps": 2}, 1),
    "reentrant": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        2,
    ),
    "non-reentrant": (
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_trainer(architecture, name, lora_pair, tmp_path):
    changes, forwards = CASES[name]
    plain, patched = both(lora_pair(architecture), tmp_path, **changes)
    assert_equal(patched, plain)
    micro_batches = STEPS * changes.get("gradient_accumulation_steps", 1)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, micro_batches * LAYERS * forwards)


def test_compiled(lora_pair, tmp_path, compiler):
    """Training begins after the model was wrapped for ``torch.compile`` and before anything is compiled."""
    plain, model, rows = lora_pair()
    reference = run_trainer(Trainer(plain, arguments(tmp_path), train_dataset=rows))
    compiled = arguments(tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    trainer = Trainer(model, compiled, train_dataset=rows, callbacks=[patchkit.TrainerCallback])
    patched = run_trainer(trainer)
    assert isinstance(trainer.model_wrapped, OptimizedModule)
    assert_equal(patched, reference)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, LAYERS)  # traced once
    assert compiler["stats"]["unique_graphs"] == 1
    assert not compiler["graph_break"]


def test_patched_after_compiling(lora_pair, tmp_path, compiler):
    """Compiled code tests the classes of the modules, so a second training does not use what the first one compiled."""
    plain, model, rows = lora_pair()
    reference = Trainer(plain, arguments(tmp_path), train_dataset=rows)
    trainer = Trainer(model, arguments(tmp_path, torch_compile_backend="eager"), train_dataset=rows)
    run_trainer(reference)
    assert run_trainer(trainer).calls == {}
    assert compiler["stats"]["unique_graphs"] == 1
    trainer.add_callback(patchkit.TrainerCallback)
    patched = run_trainer(trainer)
    assert_equal(patched, run_trainer(reference))
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, LAYERS)
    assert compiler["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=["float32-base", "bfloat16-base"])
def test_bfloat16(base, lora_pair, tmp_path):
    """``bf16=True`` is autocast, over either base with adapters in float32; errors are against all in float32."""
    plain, model, rows = lora_pair(dtype=base)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    truth = run_trainer(Trainer(copy.deepcopy(plain).float(), arguments(tmp_path), train_dataset=rows))
    upstream, patched = both((plain, model, rows), tmp_path, bf16=True)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, STEPS * LAYERS)
    assert 1e-4 < total_error(upstream, truth) < 0.1
    assert total_error(patched, truth) <= LOW_PRECISION_RATIO * total_error(upstream, truth)
    assert patched.losses == pytest.approx(upstream.losses, rel=2**-8)
