"""``Trainer`` with the loss without logits: each loss and the final weights, and what has to have its logits."""

from __future__ import annotations

import copy

import pytest
import transformers
from test_trainer import STEPS, Trainer, arguments
from training_runs import assert_equal, run_trainer

import patchkit

CASES = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
}


def both(pair, folder, options, **changes):
    plain, model, rows = pair
    callback = patchkit.TrainerCallback(loss=True, trust="always")
    reference = Trainer(plain, arguments(folder, **changes), train_dataset=rows, **options)
    trainer = Trainer(model, arguments(folder, **changes), train_dataset=rows, callbacks=[callback], **options)
    return run_trainer(reference), run_trainer(trainer), callback.report


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_trainer(changes, lora_pair, tmp_path):
    """With ``num_items_in_batch``, which the Trainer counts and hands on."""
    plain, patched, report = both(lora_pair("llama"), tmp_path, {}, **changes)
    assert_equal(patched, plain)
    assert {row.level for row in report.rows if row.part == "loss"} == {"fused"}
    assert patched.calls["lora_cross_entropy"] == STEPS * changes.get("gradient_accumulation_steps", 1)


def own_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1).float()
    return transformers.loss.loss_utils.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()) * 2


LOGITS = {
    "label smoothing": ({"label_smoothing_factor": 0.1}, {}),
    "a loss of the user's": ({}, {"compute_loss_func": own_loss}),
}


@pytest.mark.parametrize(("changes", "options"), LOGITS.values(), ids=LOGITS)
def test_what_reads_logits_has_them(changes, options, lora_pair, tmp_path):
    """The Trainer hands the model no labels then."""
    plain, patched, _ = both(lora_pair("llama"), tmp_path, copy.copy(options), **changes)
    assert_equal(patched, plain)
    assert "lora_cross_entropy" not in patched.calls
    assert len(patched.losses) == STEPS
