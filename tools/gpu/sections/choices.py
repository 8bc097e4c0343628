"""Ways of computing the same that only a device can tell apart, on one gated MLP of a layer of llama-8B.

:mod:`patchkit_kernels.lora.choices` says which there are, and what is predicted of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from patchkit.tuning.questions import TINY, Shape, difference
from patchkit.tuning.timing import microseconds
from patchkit.tuning.ways import TOLERANCE, mlp_step
from patchkit_kernels.lora.choices import choosing
from tools.gpu.cells import Cell, Setting, Wrong

RANK = 16
WAYS: dict[str, dict[str, int]] = {
    "as chosen": {},
    "P2": {"one_pass_rank": RANK},
    "P3": {"in_activation_rank": RANK},
    "P2 and P3": {"one_pass_rank": RANK, "in_activation_rank": RANK},
}
PRECISIONS = {"A": torch.float32, "C": torch.bfloat16}
"""The dtype of the adapters, over a base in bfloat16."""

LLAMA_8B = Shape("llama-8b", 4096, 14336, 4096)


def cells(setting: Setting) -> Sequence[Cell]:
    """One cell for each precision and number of tokens."""
    return [
        Cell(f"MLP {name}, {tokens} tokens", partial(_mlp, setting, dtype, tokens))
        for tokens in ((16, 8) if setting.tiny else (4096, 512))
        for name, dtype in PRECISIONS.items()
    ]


def _mlp(setting: Setting, dtype: torch.dtype, tokens: int) -> dict[str, float]:
    """Microseconds of forward and backward in each way, and how far its results are from the first one's."""
    shape = (TINY if setting.tiny else LLAMA_8B)._replace(tokens=tokens)
    step = mlp_step(setting.device, shape, RANK, dtype)
    samples = {"repeats": 2, "warm": 1} if setting.tiny else {}
    found: dict[str, float] = {}
    expected: list[Tensor] = []
    for name, choice in WAYS.items():
        with choosing(emulated=setting.on_cpu, **choice):
            results = step()
            found[f"{name} us"] = microseconds(step, setting.device, **samples)
        expected = expected or results
        found[f"{name} difference"] = max(map(difference, results, expected))
    found["saved by P3 us"] = found["P2 us"] - found["P2 and P3 us"]
    if not (worst := max(found[f"{name} difference"] for name in WAYS)) <= TOLERANCE:
        raise Wrong(f"results differ by {worst:.2g}", found)
    return found
