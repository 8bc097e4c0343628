"""TRL's ``SFTTrainer``, ``DPOTrainer`` and ``GRPOTrainer`` with ``peft_config``: adapters that only exist inside the trainer."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from training_runs import LAYERS, RecordsLosses, assert_equal, run_trainer

import patchkit
from patchkit.testing import FUSED_FUNCTIONS, TEXT_PROJECTIONS, add_lora, tiny_model

trl = pytest.importorskip("trl", reason="TRL 1.16 needs Python 3.11 and transformers 4.56")

STEPS, BATCH = 4, 2


class SFTTrainer(RecordsLosses, trl.SFTTrainer):
    pass


class DPOTrainer(RecordsLosses, trl.DPOTrainer):
    pass


class GRPOTrainer(RecordsLosses, trl.GRPOTrainer):
    pass


@pytest.fixture
def both(tokenizer, tmp_path):
    """Makes the trainings of a trainer class, without and with the callback."""

    def make(trainer_class, config_class, data, architecture="qwen2", retrain=False, given=None, **changes):
        settings = {
            "output_dir": str(tmp_path),
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "learning_rate": 1e-2,
            "adam_epsilon": 1e-3,  # Adam's first steps are otherwise the signs of gradients, noise included
            **({"max_length": 48} if hasattr(config_class, "max_length") else {}),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }

        def training(callbacks):
            # Adapters are drawn from the global seed.
            config = LoraConfig(r=4, lora_alpha=8, target_modules=TEXT_PROJECTIONS, init_lora_weights=False)
            torch.manual_seed(0)
            trainer = trainer_class(
                add_lora(tiny_model(architecture)) if retrain else tiny_model(architecture),
                args=config_class(**settings | changes),
                train_dataset=Dataset.from_list(data),
                processing_class=tokenizer,
                peft_config=None if retrain else config,
                callbacks=callbacks,
                **given or {},
            )
            return run_trainer(trainer)

        callback = patchkit.TrainerCallback(strict=True)
        plain, patched = training([]), training([callback])
        assert {row.level for row in callback.report.rows} == {"fused"}
        return plain, patched

    return make


@pytest.mark.parametrize(
    ("changes", "forwards"),
    [
        pytest.param({}, 1, id="plain"),
        pytest.param({"gradient_checkpointing": True}, 2, id="checkpointing"),
        pytest.param({"packing": True, "packing_strategy": "wrapped", "max_length": 16}, 1, id="packing"),
        pytest.param({"gradient_accumulation_steps": 2}, 1, id="accumulation"),
    ],
)
def test_sft(changes, forwards, both, sentences):
    data = [{"text": text} for text in sentences(32)]
    plain, patched = both(SFTTrainer, trl.SFTConfig, data, **changes)
    assert_equal(patched, plain)
    micro_batches = STEPS * changes.get("gradient_accumulation_steps", 1)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, micro_batches * LAYERS * forwards)


@pytest.fixture
def preferences(sentences):
    texts = sentences(48)
    return [
        {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}
        for prompt, chosen, rejected in zip(texts[:16], texts[16:32], texts[32:], strict=True)
    ]


@pytest.mark.parametrize(("changes", "forwards"), [({}, 1), ({"gradient_checkpointing": True}, 2)])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_dpo(architecture, changes, forwards, both, preferences):
    """The reference pass disables the adapters, so it runs upstream: only the policy's pass is fused."""
    plain, patched = both(DPOTrainer, trl.DPOConfig, preferences, architecture, **changes)
    assert_equal(patched, plain)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, STEPS * LAYERS * forwards)


def test_dpo_of_an_adapter(both, preferences):
    """The reference pass switches to a copy of the adapter, which TRL names "ref", so it is fused too."""
    plain, patched = both(DPOTrainer, trl.DPOConfig, preferences, retrain=True)
    assert_equal(patched, plain)
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, 2 * STEPS * LAYERS)


@pytest.mark.parametrize("iterations", [1, 2])
def test_grpo(iterations, both, sentences):
    """It samples in the training loop, from the patched model, which draws the same tokens; then it trains on them."""
    data = [{"prompt": text} for text in sentences(16)]

    def reward(completions, **_):
        return [float(len(set(text))) for text in completions]

    # Without a penalty for leaving the reference, the loss of what was just sampled is zero whatever the weights.
    changes = {"num_generations": 2, "max_completion_length": 8, "beta": 0.1, "num_iterations": iterations}
    plain, patched = both(GRPOTrainer, trl.GRPOConfig, data, given={"reward_funcs": reward}, **changes)
    assert_equal(patched, plain)
    # Each of the 8 tokens of a sample is a forward, and so are the log-probabilities that later steps compare with.
    samples = STEPS // iterations * (8 + (iterations > 1))
    assert patched.calls == dict.fromkeys(FUSED_FUNCTIONS, (STEPS + samples) * LAYERS)
