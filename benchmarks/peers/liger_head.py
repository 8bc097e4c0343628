"""An adapted ``lm_head`` under Liger's fused linear cross-entropy, in Triton's interpreter on the CPU.

``python benchmarks/peers/liger_head.py FOLDER``, where FOLDER holds the unpacked package.
"""

from __future__ import annotations

import copy
import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, sys.argv[1])  # before what is installed: it holds the peers alone

from liger_kernel.transformers.model.llama import lce_forward

import patchkit
from benchmarks.peers.measuring import Row, show, taken_from
from patchkit.testing import add_lora, tiny_inputs, tiny_model

RUN = "run: its forward, kernels in Triton's interpreter"


def step(model: Any, inputs: Any) -> tuple[str, str]:
    """The loss of one step, and the norm of the gradient of the head's B."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    (gradient,) = (one.grad for name, one in model.named_parameters() if "lm_head" in name and "lora_B" in name)
    return f"{float(loss):.5f}", "no gradient" if gradient is None else f"{float(gradient.norm()):.5f}"


def main() -> None:
    """Print the rows."""
    taken_from(sys.argv[1], sys.modules["liger_kernel.transformers.model.llama"])
    plain = add_lora(tiny_model("llama"), target_modules=["q_proj", "lm_head"]).train()
    inputs = tiny_inputs("llama", plain)
    liger, patched = copy.deepcopy(plain), copy.deepcopy(plain)
    inner = liger.get_base_model()
    inner.forward = types.MethodType(lce_forward, inner)  # as apply_liger_kernel_to_llama does for a model
    patchkit.apply(patched, loss=True)
    found = [step(model, inputs) for model in (plain, liger, patched)]
    quantities = ("loss of one step, without logits", "gradient of the head's B (norm)")
    show(
        [
            Row("LoRA on lm_head", quantity, peft, "liger-kernel", theirs, ours, RUN)
            for quantity, (peft, theirs, ours) in zip(quantities, zip(*found, strict=True), strict=True)
        ]
    )


if __name__ == "__main__":
    main()
