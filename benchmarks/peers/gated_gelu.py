"""The activation of gated MLPs in Axolotl's and Liger's kernels, in Triton's interpreter on the CPU.

Gemma's checkpoints say ``gelu_pytorch_tanh``; a configuration may say ``gelu``, which is another function.
``python benchmarks/peers/gated_gelu.py FOLDER``, where FOLDER holds the unpacked packages.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, sys.argv[1])  # before what is installed: it holds the peers alone

import axolotl.kernels.geglu as axolotl_geglu
import liger_kernel.ops.geglu as liger_geglu
import triton
import triton.language as tl

import patchkit
from benchmarks.peers.measuring import Row, line_of, show, taken_from
from patchkit.testing import add_lora, fused_calls, tiny_model

BLOCK = 1024
GATE = torch.linspace(-6, 6, 12 * BLOCK).view(1, 12, BLOCK)
UP = torch.ones_like(GATE)
QUANTITY = "largest difference of act(gate) · up from transformers'"


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """Of CUDA's library, which the interpreter does not have."""
    return 2 * tl.sigmoid(2 * x) - 1


def axolotl(gate: Tensor, up: Tensor) -> Tensor:
    """Its kernel for every activation that has "gelu" in its name; its launcher wants a GPU."""
    out = torch.empty_like(gate)
    grid = (triton.cdiv(gate.numel(), BLOCK),)
    axolotl_geglu._geglu_fwd_kernel[grid](gate, up, out, n_elements=gate.numel(), BLOCK_SIZE=BLOCK)
    return out


def liger(gate: Tensor, up: Tensor) -> Tensor:
    """Its kernel for the MLPs of Gemma, whatever the configuration says."""
    liger_geglu.tanh = tanh
    found: Tensor = liger_geglu.geglu_forward(gate, up)[-1]
    return found


def ours(activation: str) -> str:
    """The largest difference of a patched tiny Gemma 3's MLP from the plain one, with the adapters' outputs in it."""
    plain = add_lora(tiny_model("gemma3", hidden_activation=activation)).train()
    patched = copy.deepcopy(plain)
    report = patchkit.apply(patched)
    assert not report.left, str(report)
    x = torch.randn(2, 5, plain.config.hidden_size, generator=torch.Generator().manual_seed(0))
    mlps = [next(one for name, one in model.named_modules() if name.endswith("mlp")) for model in (plain, patched)]
    act = mlps[0].act_fn(GATE[0])
    expected = F.gelu(GATE[0], approximate="tanh" if "tanh" in activation else "none")
    assert torch.allclose(act, expected, atol=1e-6), f"transformers took another activation than {activation}"
    with fused_calls() as calls:
        found = mlps[1](x)
    assert calls, "nothing was fused"
    return f"{float((found - mlps[0](x)).abs().max()):.1e}"


def main() -> None:
    """Print the rows."""
    taken_from(sys.argv[1], axolotl_geglu, liger_geglu)
    rule = line_of(sys.argv[1], "axolotl/monkeypatch/lora_kernels.py", 'if activation and "gelu" in activation:')
    assumed = line_of(sys.argv[1], "liger_kernel/transformers/geglu.py", "TODO: support exact GELU")
    functions: dict[str, Any] = {
        "gelu_pytorch_tanh": lambda gate: F.gelu(gate, approximate="tanh"),
        "gelu": F.gelu,
    }
    rows = []
    for name, function in functions.items():
        expected = function(GATE) * UP
        for peer, kernel, where in (("axolotl", axolotl, rule), ("liger-kernel", liger, assumed)):
            theirs = f"{float((kernel(GATE, UP) - expected).abs().max()):.1e}"
            how = f"run: its kernel in Triton's interpreter; that it is used is read: {where}"
            rows.append(Row(f"gemma 3, {name}", QUANTITY, "0", peer, theirs, ours(name), how))
    show(rows)


if __name__ == "__main__":
    main()
