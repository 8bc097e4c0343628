"""Fine-tune with a trainer: ``python -m examples.trainer``, or with ``--model PATH`` for a model of your own.

patchkit needs only the callback, which each function here passes to its trainer. The text is Python's own manual.
Without ``--model`` a small random model learns it, offline and in seconds. With several processes:
``torchrun --nproc-per-node 2 -m examples.trainer``.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import patchkit
from examples.demo.weights import small_random

LENGTH = 128
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")

Settings = dict[str, Any]
"""Arguments of any trainer."""


class Kind(str, Enum):
    """Whose trainer."""

    sft = "sft"
    dpo = "dpo"
    grpo = "grpo"
    hugging_face = "hugging-face"


def sft(model: Any, tokenizer: Any, data: Dataset, callback: patchkit.TrainerCallback, settings: Settings) -> Any:
    """TRL's trainer, which adds the adapters by itself."""
    return SFTTrainer(
        model,
        args=SFTConfig(max_length=LENGTH, **settings),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LORA,
        callbacks=[callback],
    )


def dpo(model: Any, tokenizer: Any, data: Dataset, callback: patchkit.TrainerCallback, settings: Settings) -> Any:
    """TRL's trainer of preferences: here, what the manual goes on with rather than what another page says.

    Its reference pass turns the adapters off, and runs upstream's code.
    """
    texts, part = data["text"], LENGTH // 4  # of characters: at most as many tokens of plain text
    pairs = [
        {"prompt": text[:part], "chosen": text[part : 2 * part], "rejected": other[part : 2 * part]}
        for text, other in zip(texts, reversed(texts), strict=True)
    ]
    return DPOTrainer(
        model,
        args=DPOConfig(max_length=LENGTH, **settings),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=LORA,
        callbacks=[callback],
    )


def grpo(model: Any, tokenizer: Any, data: Dataset, callback: patchkit.TrainerCallback, settings: Settings) -> Any:
    """TRL's trainer of rewards: here, for texts of many different letters. It samples from the patched model."""

    def different_letters(completions: list[str], **_: object) -> list[float]:
        return [float(len(set(text))) for text in completions]

    return GRPOTrainer(
        model,
        different_letters,
        args=GRPOConfig(max_completion_length=LENGTH // 8, num_generations=2, **settings),
        train_dataset=Dataset.from_list([{"prompt": text[:LENGTH]} for text in data["text"]]),
        processing_class=tokenizer,
        peft_config=LORA,
        callbacks=[callback],
    )


def hugging_face(
    model: Any, tokenizer: Any, data: Dataset, callback: patchkit.TrainerCallback, settings: Settings
) -> Any:
    """The trainer of transformers, which gets a model with adapters."""
    tokens = data.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=LENGTH), batched=True, remove_columns="text"
    )
    return Trainer(
        get_peft_model(model, LORA),
        args=TrainingArguments(**settings),
        train_dataset=tokens,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[callback],
    )


def load(path: str | None) -> tuple[Any, Any]:
    """A model and its tokenizer: from a folder or hub name, or small and random."""
    if path is None:
        small = small_random()
        return small.load(), small.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(path), tokenizer


def main(
    model: Annotated[str | None, typer.Option(help="Folder or hub name; without it, a small random model.")] = None,
    trainer: Annotated[Kind, typer.Option(help="Which trainer.")] = Kind.sft,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 20,
    batch: Annotated[
        int, typer.Option(min=1, help="Sequences in a step, for each process; an even number for grpo.")
    ] = 4,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("trainer-output"),
) -> None:
    """LoRA fine-tuning with patchkit.TrainerCallback."""
    accelerated = torch.accelerator.is_available()
    settings = {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-3,
        "logging_steps": max(1, steps // 10),
        "bf16": accelerated,
        "use_cpu": not accelerated,
        "save_strategy": "no",
        "report_to": "none",
    }
    callback = patchkit.TrainerCallback()
    data = Dataset.from_dict({"text": [text for _, text in sorted(topics.items())]})
    build = {Kind.sft: sft, Kind.dpo: dpo, Kind.grpo: grpo, Kind.hugging_face: hugging_face}[trainer]
    training = build(*load(model), data, callback, settings)
    training.train()
    training.save_model()  # an ordinary PEFT adapter: it loads where patchkit is not installed
    if training.is_world_process_zero():
        Console().print(callback.report, f"\nThe adapter is in {output}.")


if __name__ == "__main__":
    typer.run(main)
