"""Axolotl's LoRA kernels for q/k/v and o, as its own functions, on the CPU: dropout, DoRA, biases, two adapters.

``python benchmarks/peers/axolotl_projections.py FOLDER``, where FOLDER holds the unpacked package.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, sys.argv[1])  # before what is installed: it holds the peers alone

from axolotl.kernels.lora import apply_lora_embedding, apply_lora_o, apply_lora_qkv

import patchkit
from benchmarks.peers.measuring import (
    Row,
    attention_of,
    difference,
    distinct_masks,
    line_of,
    make_masks_seen,
    show,
    taken_from,
)
from patchkit.testing import add_lora, randomise_adapter, tiny_model

RUN = "run: its autograd functions"
SIZE: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}


def built(model: str = "llama", **lora: Any) -> tuple[Any, Any, Tensor]:
    """An attention with adapters, a patched copy of it, and an input ``[2, 5, hidden]``."""
    plain = add_lora(tiny_model(model, **SIZE), **lora).train()
    patched = copy.deepcopy(plain)
    report = patchkit.apply(patched)
    assert not report.left, str(report)
    torch.manual_seed(0)
    return attention_of(plain), attention_of(patched), torch.randn(2, 5, SIZE["hidden_size"])


def of_o(plain: Any, patched: Any, x: Tensor) -> tuple[str, str]:
    """How far the peer's output of ``o_proj``, and ours, are from PEFT's, with the same seed."""
    found = []
    for function in (lambda: plain.o_proj(x), lambda: apply_lora_o(plain, x), lambda: patched.apply_o(x)):
        torch.manual_seed(1)
        found.append(function())
    return difference(found[1], found[0]), difference(found[2], found[0])


def masks() -> Row:
    """How many dropout masks q, k and v draw."""
    size = SIZE["hidden_size"]
    plain, patched, _ = built(r=size, lora_alpha=size, lora_dropout=0.5)
    x = make_masks_seen(plain, patched)
    peft = distinct_masks(projection(x) for projection in (plain.q_proj, plain.k_proj, plain.v_proj))
    theirs, ours = distinct_masks(apply_lora_qkv(plain, x)), distinct_masks(patched.apply_qkv(x))
    return Row("LoRA with dropout", "masks drawn for q, k and v", peft, "axolotl", theirs, ours, RUN)


def same(setting: str, lora: dict[str, Any]) -> Row:
    """The output of ``o_proj`` in a setting."""
    theirs, ours = of_o(*built(**lora))
    return Row(setting, "output of o, relative to PEFT's, same seed", "0", "axolotl", theirs, ours, RUN)


def adapters() -> Row:
    """Two active adapters."""
    plain = add_lora(tiny_model("llama", **SIZE)).train()
    plain.add_adapter("second", plain.peft_config["default"])
    randomise_adapter(plain, "second", seed=1)
    plain.base_model.set_adapter(["default", "second"])
    patched = copy.deepcopy(plain)
    report = patchkit.apply(patched)
    assert not report.left, str(report)
    torch.manual_seed(0)
    x = torch.randn(2, 5, SIZE["hidden_size"])
    theirs, ours = of_o(attention_of(plain), attention_of(patched), x)
    where = line_of(sys.argv[1], "axolotl/monkeypatch/lora_kernels.py", "assert len(model.active_adapters) == 1")
    how = f"{RUN}; when it patches, one active adapter is required ({where})"
    return Row("two active adapters", "output of o, relative to PEFT's", "0", "axolotl", theirs, ours, how)


def biases() -> Row:
    """Whether the biases of the base layers are trained that ``bias="all"`` asks for."""
    plain, patched, x = built("qwen2", bias="all")

    def gradient(attention: Any, outputs: Any) -> str:
        bias = attention.q_proj.base_layer.bias
        bias.grad = None
        sum(one.square().sum() for one in outputs).backward()
        return "no gradient" if bias.grad is None else f"{float(bias.grad.norm()):.4g}"

    peft = gradient(plain, [projection(x) for projection in (plain.q_proj, plain.k_proj, plain.v_proj)])
    theirs, ours = gradient(plain, apply_lora_qkv(plain, x)), gradient(patched, patched.apply_qkv(x))
    return Row('qwen2, bias="all"', "gradient of q's bias (norm)", peft, "axolotl", theirs, ours, RUN)


def embeddings() -> list[Row]:
    """An adapted embedding, plain and with a scale of its own."""
    rows = []
    for model, setting in (("llama", "LoRA on the embedding"), ("gemma3", "LoRA on the embedding, gemma 3")):
        plain = add_lora(tiny_model(model), target_modules=["embed_tokens"]).train()
        patched = copy.deepcopy(plain)
        report = patchkit.apply(patched)
        assert not report.left, str(report)
        table, ours = (one.get_base_model().get_input_embeddings() for one in (plain, patched))
        tokens = torch.arange(20).view(2, 10) + 1
        expected = table(tokens)
        theirs = difference(apply_lora_embedding(table, tokens), expected)
        quantity = "its output, relative to PEFT's"
        rows.append(Row(setting, quantity, "0", "axolotl", theirs, difference(ours(tokens), expected), RUN))
    return rows


def down() -> Row:
    """Dropout before ``down_proj``, whose function wants a GPU."""
    where = line_of(sys.argv[1], "axolotl/kernels/lora.py", "# Down projection (no dropout on hidden")
    patched = add_lora(tiny_model("llama"), target_modules=["gate_proj", "up_proj", "down_proj"], lora_dropout=0.5)
    patched.train()
    patchkit.apply(patched)
    mlp = next(module for name, module in patched.named_modules() if name.endswith("mlp"))
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.lora_dropout["default"].p = 0.0
    x = torch.randn(2, 5, patched.config.hidden_size)
    ours = "no" if torch.equal(mlp(x), mlp(x)) else "yes"
    return Row("LoRA with dropout", "dropped before down", "yes", "axolotl", "no", ours, f"read: {where}; ours run")


def partly() -> Row:
    """Adapters on q and v alone."""
    patched = add_lora(tiny_model("llama", **SIZE), target_modules=["q_proj", "v_proj"])
    report = patchkit.apply(patched)
    (ours,) = {row.level for row in report.rows if row.part == "qkv"}
    where = line_of(sys.argv[1], "axolotl/monkeypatch/lora_kernels.py", "can_patch_qkv = all(")
    return Row(
        "adapters on q and v alone", "level of q/k/v", "-", "axolotl", "not fused", ours, f"read: {where}; ours run"
    )


if __name__ == "__main__":
    taken_from(sys.argv[1], sys.modules["axolotl.kernels.lora"])
    show(
        [
            masks(),
            same("LoRA with dropout", {"lora_dropout": 0.5}),
            same("LoRA with a bias of B", {"lora_bias": True}),
            same("DoRA", {"use_dora": True}),
            same("DoRA with dropout", {"use_dora": True, "lora_dropout": 0.5}),
            down(),
            adapters(),
            biases(),
            *embeddings(),
            partly(),
        ]
    )
