"""QLoRA: adapters over weights that bitsandbytes keeps in 4 bits. It needs ``pip install ".[bnb]"`` in a clone."""

from __future__ import annotations

import tempfile

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import patchkit
from examples.recipes.model import small, train


def main() -> tuple[patchkit.Report, list[float]]:
    """Train; the report and the losses."""
    plain, batch = small()
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits, dtype=torch.float32)
    model = prepare_model_for_kbit_training(model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    model.train()  # in eval mode bitsandbytes packs its weights anew on some CPUs
    return patchkit.apply(model), train(model, batch)


if __name__ == "__main__":
    for result in main():
        print(result)
