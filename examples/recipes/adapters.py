"""Several adapters in one model, switched between calls. Each call uses the adapter that is active then."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

import patchkit
from examples.recipes.model import small
from patchkit.testing import randomise_adapter


def main() -> dict[str, Tensor]:
    """The logits with each adapter, with both, and with none."""
    model, batch = small()
    config = LoraConfig(r=8, target_modules="all-linear")
    model = get_peft_model(model, config, adapter_name="poems")
    model.add_adapter("laws", config)
    for number, name in enumerate(("poems", "laws")):
        randomise_adapter(model, name, seed=number)  # as if they were trained
    patchkit.apply(model.eval())
    logits = {}
    with torch.no_grad():
        for names in (["poems"], ["laws"], ["poems", "laws"]):
            model.base_model.set_adapter(names)
            logits[" + ".join(names)] = model(**batch).logits
        with model.disable_adapter():
            logits["none"] = model(**batch).logits
    return logits


if __name__ == "__main__":
    for name, found in main().items():
        print(name, found.norm())
