"""The table of cases of the two products that read dy, and what is demanded of the Triton kernel and of the reference.

Run as a program in Triton's interpreter it prints the complaint for each case.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from dora_norm_cases import VIEWS
from strided_tensors import DTYPES, as_dtype
from triton_interpreter import print_complaints, results_in_margins, run_device_kernel

import patchkit_kernels.ops.low_rank_backward  # noqa: F401, registers the op
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES

OP = torch.ops.patchkit.low_rank_backward.default
SCALE = 0.7

UNIT = 2.0**-23
"""Of fp32, and how much of what the sum would be without cancellation the error may be: a few roundings of that. Two
pieces of an fp32 factor instead of three would make it 2**-17, and TF32 2**-11."""


@dataclass(frozen=True)
class Case:
    tokens: int
    columns: int
    rank: int
    grad: str = "fp32"
    factors: str = "fp32"
    views: tuple[str, str, str] = ("plain", "plain", "plain")
    size: int = 0
    """Of the grid of launches."""

    @property
    def id(self) -> str:
        rest = dict.fromkeys([self.grad, self.factors, *self.views, *([f"size {self.size}"] if self.size else [])])
        return "-".join([f"{self.tokens}x{self.columns}r{self.rank}", *rest])

    def arguments(self, device: str = "cpu") -> list[Any]:
        shapes = ((self.tokens, self.columns), (self.columns, self.rank), (self.tokens, self.rank))
        dtypes = (self.grad, self.factors, self.factors)
        made = [
            as_dtype(VIEWS[view](*shape, seed), DTYPES[dtype], device)
            for seed, (view, shape, dtype) in enumerate(zip(self.views, shapes, dtypes, strict=True))
        ]
        return [*made, SCALE]


def _random_cases(count: int) -> list[Case]:
    chosen = random.Random(0)
    return [
        Case(
            chosen.randint(1, 100),
            chosen.randint(1, 300),
            chosen.randint(1, 64),
            *chosen.choice([(one, other) for one in DTYPES for other in DTYPES]),
            tuple(chosen.choices(list(VIEWS), k=3)),  # type: ignore[arg-type]
        )
        for _ in range(count)
    ]


SIZES = ((1, 1, 1), (3, 5, 2), (32, 128, 16), (33, 129, 17), (31, 300, 64), (2049, 9, 3))
CASES = [
    *(Case(90, 300, 17, "bf16", "fp32", size=size) for size in range(1, len(GRID["low_rank_backward"]))),
    *(Case(*size, grad, factors) for size in SIZES for grad, factors in (("fp32", "fp32"), ("bf16", "fp32"))),
    *(Case(40, 140, 20, grad, factors) for grad in DTYPES for factors in DTYPES),
    *(Case(33, 70, 17, "bf16", "fp32", (view,) * 3) for view in VIEWS),
    *(Case(*size) for size in ((0, 5, 2), (3, 0, 2), (3, 5, 0), (0, 0, 1))),
    *_random_cases(20),
]


def complaint(case: Case, run: Callable[[list[Any]], Any], device: str = "cpu") -> str | None:
    """Run a case by ``run(arguments)``: None if all is well, else what is wrong."""
    arguments = case.arguments(device)
    grad, factor, reduced = (tensor.cpu().double() for tensor in arguments[:3])
    with LAUNCH_SIZES.changed(low_rank_backward=GRID["low_rank_backward"][case.size]):
        results = run(arguments)
    dtype = DTYPES[case.factors]
    for name, left, right, found in zip(("dt", "dB"), (grad, grad.t()), (factor, reduced), results, strict=True):
        exact, upper = SCALE * left @ right, SCALE * left.abs() @ right.abs()
        if (found.shape, found.dtype, found.device) != (exact.shape, dtype, arguments[0].device):
            return f"{name}: {list(found.shape)} {found.dtype} on {found.device}"
        if not found.is_contiguous():
            return f"{name} has strides {found.stride()}"
        bound = torch.finfo(dtype).eps / 2 * exact.abs() + UNIT * (4 + left.shape[1] ** 0.5) * upper
        error = (found.cpu().double() - exact).abs()
        if not (error <= bound).all():
            return f"{name}: error of {(error / bound).max():.3g} times the bound"
    if any(not torch.equal(x, y) for x, y in zip(arguments[:3], case.arguments(device)[:3], strict=True)):
        return "an input was modified"
    return None


def _run_interpreted(arguments: list[Any]) -> Any:
    with results_in_margins():
        return run_device_kernel(OP, arguments)


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
