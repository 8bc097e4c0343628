"""Three ways to save what was trained. Each file is the one that an unpatched model would have written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import patchkit
from examples.recipes.model import small, train


def main() -> dict[str, Any]:
    """The logits of the trained model, and of what was loaded from each kind of file."""
    base, batch = small()
    config = LoraConfig(r=8, target_modules="all-linear")
    model = get_peft_model(base, config)
    patchkit.apply(model)
    train(model.train(), batch)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        found = {"trained": model.eval()(**batch).logits}

        model.save_pretrained(Path(folder) / "adapter")  # 1. the adapter alone
        loaded = PeftModel.from_pretrained(small()[0], Path(folder) / "adapter").eval()
        found["adapter"] = loaded(**batch).logits

        torch.save(model.state_dict(), Path(folder) / "state.pt")  # 2. every tensor, for going on
        other = get_peft_model(small()[0], config)
        other.load_state_dict(torch.load(Path(folder) / "state.pt"))
        found["state"] = other.eval()(**batch).logits

        merged = model.merge_and_unload()  # 3. merged into the weights, an ordinary model
        merged.save_pretrained(Path(folder) / "merged")
        found["merged"] = type(merged).from_pretrained(Path(folder) / "merged").eval()(**batch).logits
    return found


if __name__ == "__main__":
    for way, logits in main().items():
        print(way, logits.norm())
