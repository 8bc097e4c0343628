"""DoRA with dropout and rank-stabilised scaling: patchkit needs no option for it, since it reads the adapters."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model

import patchkit
from examples.recipes.model import small, train


def main() -> tuple[patchkit.Report, list[float]]:
    """Train; the report and the losses."""
    model, batch = small("gemma3")
    config = LoraConfig(r=8, use_dora=True, use_rslora=True, lora_dropout=0.1, target_modules="all-linear")
    model = get_peft_model(model, config)
    report = patchkit.apply(model, strict=True)  # raises if a part with an adapter would run upstream's code
    return report, train(model.train(), batch)


if __name__ == "__main__":
    for result in main():
        print(result)
