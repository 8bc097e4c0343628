"""The table of cases of DoRA's weight norm, and what is demanded of the Triton kernel and of the reference in each.

Run as a program in Triton's interpreter it prints the complaint for each case.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from strided_tensors import DTYPES, as_dtype, uniform
from torch import Tensor
from triton_interpreter import print_complaints, results_in_margins, run_device_kernel

import patchkit_kernels.ops.dora_norm  # noqa: F401, registers the op

OP = torch.ops.patchkit.dora_weight_norm.default

NOISE = 5e-7
"""Of fp32, relative to what a row's norm would be if nothing cancelled. TF32 or bf16 would make it 5e-4 and more."""

VIEWS: dict[str, Callable[[int, int, int], Tensor]] = {
    "plain": lambda rows, columns, seed: uniform(rows, columns, seed=seed),
    "transposed": lambda rows, columns, seed: uniform(columns, rows, seed=seed).mT,
    "stepped": lambda rows, columns, seed: uniform(2 * rows, 3 * columns, seed=seed)[1::2, 2::3],
    "inner": lambda rows, columns, seed: uniform(rows + 3, columns + 5, seed=seed)[2:-1, 5:],
    "expanded": lambda rows, columns, seed: uniform(1, columns, seed=seed).expand(rows, columns),
}


@dataclass(frozen=True)
class Case:
    rows: int
    columns: int
    rank: int
    dtypes: tuple[str, str, str] = ("fp32", "fp32", "fp32")
    views: tuple[str, str, str] = ("plain", "plain", "plain")
    bias: str | None = None
    """The dtype of B's bias, or None if there is none."""
    cancels: bool = False
    """Whether the weight is the negative of the adapter's product but for one part in ten thousand."""

    @property
    def id(self) -> str:
        shape = f"{self.rows}x{self.columns}r{self.rank}"
        rest = [*dict.fromkeys(self.dtypes), *dict.fromkeys(self.views)]
        return "-".join([shape, *rest, f"bias_{self.bias}", *(["cancels"] if self.cancels else [])])

    def arguments(self, device: str = "cpu") -> list[Any]:
        scaling = 0.7
        shapes = ((self.rows, self.columns), (self.rank, self.columns), (self.rows, self.rank))
        weight, lora_a, lora_b = (
            as_dtype(VIEWS[view](*shape, seed), DTYPES[dtype], device)
            for seed, (view, shape, dtype) in enumerate(zip(self.views, shapes, self.dtypes, strict=True))
        )
        if self.cancels:
            product = lora_b.double() @ lora_a.double()
            weight = (weight.double() * 1e-4 - scaling * product).to(weight.dtype)
        bias = None
        if self.bias is not None:
            bias = as_dtype(uniform(self.rows, 2, seed=3)[:, 0], DTYPES[self.bias], device)
        return [weight, lora_a, lora_b, scaling, bias]


def _random_cases(count: int) -> list[Case]:
    chosen = random.Random(0)
    return [
        Case(
            chosen.randint(1, 80),
            chosen.randint(1, 200),
            chosen.randint(1, 256),
            tuple(chosen.choices(list(DTYPES), k=3)),  # type: ignore[arg-type]
            tuple(chosen.choices(list(VIEWS), k=3)),  # type: ignore[arg-type]
            chosen.choice([None, *DTYPES]),
        )
        for _ in range(count)
    ]


MIXTURES = (
    ("bf16", "bf16", "bf16"),
    ("fp16", "fp16", "fp16"),
    ("bf16", "fp32", "fp32"),
    ("fp32", "bf16", "fp16"),
    ("fp16", "fp32", "bf16"),
)
SIZES = ((1, 1, 1), (3, 5, 1), (32, 64, 16), (33, 65, 17), (31, 1025, 33), (2, 2100, 8), (40, 70, 256))
CASES = [
    *(Case(*size, bias=bias) for size in SIZES for bias in (None, "fp32")),
    *(Case(33, 70, 17, dtypes=dtypes, bias=bias) for dtypes in MIXTURES for bias in (None, dtypes[0])),
    *(Case(33, 70, 17, views=(view,) * 3) for view in VIEWS),
    *(Case(33, 70, 17, cancels=True, views=(view, "plain", "plain")) for view in ("plain", "transposed")),
    *(Case(*size, bias="fp32") for size in ((0, 5, 2), (3, 0, 2), (0, 0, 1))),
    *_random_cases(30),
]


def truth(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The norms in fp64, and what they would be if every part of the sum had the same sign."""
    parts = [weight, lora_b, lora_a, weight.new_zeros(weight.shape[0]) if bias is None else bias]
    weight, lora_b, lora_a, bias = (part.cpu().double() for part in parts)
    exact = weight + scaling * (lora_b @ lora_a + bias[:, None])
    upper = weight.abs() + abs(scaling) * (lora_b.abs() @ lora_a.abs() + bias.abs()[:, None])
    return exact.square().sum(1).sqrt(), upper.square().sum(1).sqrt()


def complaint(case: Case, run: Callable[[list[Any]], Tensor], device: str = "cpu") -> str | None:
    """Run a case by ``run(arguments)``: None if all is well, else what is wrong."""
    arguments = case.arguments(device)
    exact, upper = truth(*arguments)
    result = run(arguments)
    if (result.shape, result.dtype, result.device) != (exact.shape, torch.float32, arguments[0].device):
        return f"{list(result.shape)} {result.dtype} on {result.device}"
    if result.requires_grad:
        return "requires a gradient"
    excess = (result.cpu().double() - exact).abs() / (NOISE * upper)
    if case.columns and excess.numel() and not excess.max() <= 1:
        return f"error of {excess.max():.3g} times the bound"
    if not case.columns and result.any():
        return f"norms of nothing: {result.tolist()}"
    if any(not torch.equal(x, y) for x, y in zip(arguments, case.arguments(device), strict=True) if torch.is_tensor(x)):
        return "an input was modified"
    return None


def _run_interpreted(arguments: list[Any]) -> Tensor:
    with results_in_margins():
        result: Tensor = run_device_kernel(OP, arguments)
    return result


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
