"""What a patched training saves and resumes from is what an unpatched one does: the same files, keys and values."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_trainer import STEPS, Trainer, arguments
from training_runs import assert_equal, run_trainer
from transformers import LlamaForCausalLM

import patchkit
from patchkit.testing import CURVE_TOLERANCE, FP32_TOLERANCE, relative_error, tiny_inputs, tiny_model


def assert_same_files(folder, reference, weights):
    """The same file names; configurations alike; the same keys, shapes and dtypes, and equal weights."""
    names = {path.name for path in reference.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    for name in names:
        if name.endswith("config.json"):
            assert json.loads((folder / name).read_text()) == json.loads((reference / name).read_text())
    found, expected = load_file(folder / weights), load_file(reference / weights)
    assert {key: (v.shape, v.dtype) for key, v in found.items()} == {
        key: (v.shape, v.dtype) for key, v in expected.items()
    }
    for key, value in expected.items():
        assert relative_error(found[key], value) < CURVE_TOLERANCE, key


@pytest.fixture
def trained(lora_pair, tmp_path):
    """``(trainer, folder)`` after training: unpatched, and patched by the callback."""
    plain, model, rows = lora_pair()
    runs = []
    for name, net, callbacks in (("plain", plain, []), ("patched", model, [patchkit.TrainerCallback])):
        trainer = Trainer(net, arguments(tmp_path / name), train_dataset=rows, callbacks=callbacks)
        trainer.train()
        runs.append((trainer, tmp_path / name))
    return runs


def test_adapter(trained, tmp_path):
    (plain, plain_folder), (patched, folder) = trained
    for trainer, target in trained:
        trainer.save_model(str(target / "adapter"))
    assert_same_files(folder / "adapter", plain_folder / "adapter", "adapter_model.safetensors")
    # Read back by PEFT into a model that was never patched.
    inputs = tiny_inputs("llama", plain.model)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), folder / "adapter").eval()
    with torch.no_grad():
        logits = patched.model.eval()(**inputs).logits
        assert relative_error(loaded(**inputs).logits, logits) < FP32_TOLERANCE


def test_merged(trained):
    (plain, plain_folder), (_, folder) = trained
    inputs = tiny_inputs("llama", plain.model)
    for trainer, target in trained:
        merged = trainer.model.merge_and_unload()
        merged.save_pretrained(target / "merged")
    assert_same_files(folder / "merged", plain_folder / "merged", "model.safetensors")
    loaded = LlamaForCausalLM.from_pretrained(folder / "merged").eval()
    with torch.no_grad():
        assert relative_error(merged.eval()(**inputs).logits, loaded(**inputs).logits) < FP32_TOLERANCE


def test_whole_model(tmp_path):
    """Full fine-tuning of a model without adapters, where the gated activation alone is fused."""
    model = tiny_model("llama").train()
    plain = copy.deepcopy(model)
    inputs = tiny_inputs("llama", model, batch=24)
    rows = [{key: value[i] for key, value in inputs.items()} for i in range(24)]
    runs = []
    for name, net, callbacks in (("plain", plain, []), ("patched", model, [patchkit.TrainerCallback])):
        trainer = Trainer(net, arguments(tmp_path / name), train_dataset=rows, callbacks=callbacks)
        runs.append(run_trainer(trainer))
        trainer.save_model(str(tmp_path / name / "whole"))
    assert_equal(runs[1], runs[0])
    assert runs[1].calls["lora_gated_mlp"] > 0
    assert_same_files(tmp_path / "patched" / "whole", tmp_path / "plain" / "whole", "model.safetensors")
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("saved_by", ["plain", "patched"])
@pytest.mark.parametrize("resumed_by", ["plain", "patched"])
def test_resume(saved_by, resumed_by, lora_pair, tmp_path):
    """Stopped after half of the steps and resumed, by either: the losses and weights of an uninterrupted training."""
    plain, model, rows = lora_pair()

    def trainer(by, net, **changes):
        callbacks = [patchkit.TrainerCallback] if by == "patched" else []
        settings = {"save_strategy": "steps", "save_steps": STEPS // 2, **changes}
        return Trainer(net, arguments(tmp_path / by, **settings), train_dataset=rows, callbacks=callbacks)

    whole = Trainer(copy.deepcopy(plain), arguments(tmp_path), train_dataset=rows)
    whole.train()
    # The schedule is that of the whole training, of which an interruption leaves the first checkpoint.
    first = trainer(saved_by, model)
    first.train()
    second = trainer(resumed_by, copy.deepcopy(plain))
    second.train(resume_from_checkpoint=str(tmp_path / saved_by / f"checkpoint-{STEPS // 2}"))
    assert second.losses == pytest.approx(whole.losses[STEPS // 2 :], rel=CURVE_TOLERANCE)
    begun, expected = dict(plain.named_parameters()), dict(whole.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        if parameter.requires_grad:
            update = expected[name] - begun[name]
            assert relative_error(parameter - begun[name], update) < CURVE_TOLERANCE, name
    levels = {row.level for row in patchkit.report(second.model).rows}
    assert levels == {"fused" if resumed_by == "patched" else "upstream"}
