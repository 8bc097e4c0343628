"""A loop of your own: patch once, after the adapters are made."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model

import patchkit
from examples.recipes.model import small, train


def main() -> tuple[patchkit.Report, list[float]]:
    """Train; the report and the losses."""
    model, batch = small()
    model = get_peft_model(model, LoraConfig(r=8, lora_dropout=0.05, target_modules="all-linear"))
    report = patchkit.apply(model)
    return report, train(model.train(), batch)


if __name__ == "__main__":
    for result in main():
        print(result)
