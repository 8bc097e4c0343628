"""Unsloth, read and not run: it wants a GPU. Each statement names the line that it is read from, or fails.

``python benchmarks/peers/unsloth_read.py FOLDER``, where FOLDER holds the unpacked package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import patchkit
from benchmarks.peers.measuring import Row, attention_of, distinct_masks, line_of, make_masks_seen, show
from patchkit.testing import add_lora, tiny_model

LEVEL = "level of q/k/v"


def levels(model: str = "llama", **lora: Any) -> str:
    """At which level patchkit runs q/k/v: run, not read."""
    adapted = add_lora(tiny_model(model), **lora)
    return ", ".join(sorted({row.level for row in patchkit.apply(adapted).rows if row.part == "qkv"}))


def main() -> None:
    """Print the rows."""
    source = sys.argv[1]
    llama, lora = "unsloth/models/llama.py", "unsloth/kernels/fast_lora.py"

    def row(setting: str, quantity: str, theirs: str, ours: str, path: str, text: str, peft: str = "-") -> Row:
        after = "def apply_lora_qkv(" if path == lora and peft == "-" else ""
        how = f"read, not run: {line_of(source, path, text, after)}; ours run"
        return Row(setting, quantity, peft, "unsloth", theirs, ours, how)

    masks = "masks drawn for q, k and v"
    no_bias = 'and (getattr(q_proj, "base_layer", q_proj).bias is None)'
    show(
        [
            row(
                "LoRA with dropout",
                masks,
                "3",
                our_masks(),
                lora,
                "Xd, K_mask = _dropout_forward(X_for_matmul, K_p)",
                "3",
            ),
            row("DoRA", LEVEL, "PEFT's forward", levels(use_dora=True), lora, "or _has_active_dora_adapter(proj)"),
            row(
                "two active adapters",
                LEVEL,
                "PEFT's forward",
                two_adapters(),
                lora,
                "_has_multiple_active_adapters(proj)",
            ),
            row("qwen2 (biases in q, k, v)", LEVEL, "PEFT's forward", levels("qwen2"), llama, no_bias),
            row(
                "adapters on q and v alone",
                LEVEL,
                "PEFT's forward",
                levels(target_modules=["q_proj", "v_proj"]),
                llama,
                'and hasattr(k_proj, "lora_A")',
            ),
        ]
    )


def our_masks() -> str:
    """How many masks q, k and v draw here."""
    size = 32
    adapted = add_lora(
        tiny_model("llama", hidden_size=size, num_attention_heads=4, num_key_value_heads=4),
        r=size,
        lora_alpha=size,
        lora_dropout=0.5,
    ).train()
    patchkit.apply(adapted)
    attention = attention_of(adapted)
    return distinct_masks(attention.apply_qkv(make_masks_seen(attention)))


def two_adapters() -> str:
    """The same with two active adapters."""
    adapted = add_lora(tiny_model("llama"))
    adapted.add_adapter("second", adapted.peft_config["default"])
    adapted.base_model.set_adapter(["default", "second"])
    return ", ".join(sorted({row.level for row in patchkit.apply(adapted).rows if row.part == "qkv"}))


if __name__ == "__main__":
    main()
