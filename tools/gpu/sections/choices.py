"""Ways of computing the same that only a device can tell apart, on one gated MLP of a layer of llama-8B.

:mod:`patchkit_kernels.lora.choices` says which there are, and what is predicted of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.projection import Adapter, Precision, Projection
from tools.gpu.cells import Cell, Setting, Wrong
from tools.gpu.sections.micro import draw
from tools.gpu.timing import microseconds

RANK = 16
WAYS: dict[str, dict[str, int]] = {
    "as chosen": {},
    "P2": {"one_pass_rank": RANK},
    "P3": {"in_activation_rank": RANK},
    "P2 and P3": {"one_pass_rank": RANK, "in_activation_rank": RANK},
}
PRECISIONS = {"A": torch.float32, "C": torch.bfloat16}
"""The dtype of the adapters, over a base in bfloat16."""

LARGEST_DIFFERENCE = 0.02
"""Of a result from what is chosen otherwise, relative: some roundings to bfloat16, which are 0.002 each."""


def cells(setting: Setting) -> Sequence[Cell]:
    """One cell for each precision and number of tokens."""
    hidden, wide = (64, 128) if setting.tiny else (4096, 14336)
    return [
        Cell(f"MLP {name}, {tokens} tokens", partial(_mlp, setting, dtype, tokens, hidden, wide))
        for tokens in ((16, 8) if setting.tiny else (4096, 512))
        for name, dtype in PRECISIONS.items()
    ]


def _mlp(setting: Setting, dtype: torch.dtype, tokens: int, hidden: int, wide: int) -> dict[str, float]:
    """Microseconds of forward and backward in each way, and how far its results are from the first one's."""
    x, dy = draw(setting, tokens, hidden).requires_grad_(), draw(setting, tokens, hidden, seed=1)
    shapes = [(wide, hidden), (wide, hidden), (hidden, wide)]
    gate, up, down = [_projection(setting, *shape, dtype, 3 * i + 2) for i, shape in enumerate(shapes)]
    precision = Precision(torch.bfloat16, dtype, torch.bfloat16, dtype)
    variables = [x, *[factor for one in (gate, up, down) for factor in one.adapters[0][:2]]]

    def step() -> list[Tensor]:
        y = lora_gated_mlp(x, [gate, up], down, "silu", precision)
        return [y.detach(), *torch.autograd.grad(y, variables, dy)]

    samples = {"repeats": 2, "warm": 1} if setting.tiny else {}
    found: dict[str, float] = {}
    expected: list[Tensor] = []
    for name, choice in WAYS.items():
        with choosing(emulated=setting.on_cpu, **choice):
            results = step()
            found[f"{name} us"] = microseconds(step, setting.device, **samples)
        expected = expected or results
        found[f"{name} difference"] = max(map(_difference, results, expected))
    found["saved by P3 us"] = found["P2 us"] - found["P2 and P3 us"]
    if (worst := max(found[f"{name} difference"] for name in WAYS)) > LARGEST_DIFFERENCE:
        raise Wrong(f"results differ by {worst:.2g}", found)
    return found


def _projection(setting: Setting, outputs: int, inputs: int, dtype: torch.dtype, seed: int) -> Projection:
    """Random, with an adapter whose part is as large as that of W."""
    lora_a, lora_b = (
        draw(setting, *shape, dtype=dtype, seed=seed + 1 + i).requires_grad_()
        for i, shape in enumerate(((RANK, inputs), (outputs, RANK)))
    )
    return Projection(draw(setting, outputs, inputs, seed=seed), None, (Adapter(lora_a, lora_b, 2.0),))


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
