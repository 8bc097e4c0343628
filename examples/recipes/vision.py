"""A vision-language model: adapters in the text model, the vision tower and the projector between them."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model

import patchkit
from examples.recipes.model import small, train


def main() -> tuple[patchkit.Report, list[float]]:
    """Train; the report and the losses."""
    model, batch = small("llava_pixtral")
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    return patchkit.apply(model), train(model.train(), batch)


if __name__ == "__main__":
    for result in main():
        print(result)
