"""The table of cases of the cross-entropy of rows, and what is demanded of the Triton kernel and the reference in each.

Run as a program in Triton's interpreter it prints the complaint for each case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from strided_tensors import DTYPES, as_dtype, uniform
from torch import Tensor
from triton_interpreter import print_complaints, run_device_kernel

import patchkit_kernels.ops.cross_entropy as module

OP = torch.ops.patchkit.cross_entropy_.default
IGNORED = -100
SMALL_BLOCK = 64
"""Columns at once where the interpreter runs, so that a row of a hundred is several."""

NOISE = {"fp32": 2e-6, "bf16": 2**-8, "fp16": 2**-10}
"""Of a gradient, relative to the largest of its row: rounding to the dtype, or the float32 sums of a row."""


@dataclass(frozen=True)
class Case:
    rows: int
    columns: int
    dtype: str = "fp32"
    scale: float = 1.0
    softcap: float = 0.0
    factor: float = 0.25
    ignored: str = "some"
    """Which labels do not count: ``some``, ``all`` or ``none``."""
    largest: float = 4.0
    """Logits are between this and its negative."""
    kind: str = "plain"
    """``padded`` for rows that are further apart than they are long, ``infinite`` for logits of minus infinity."""
    gradient: bool = True

    @property
    def id(self) -> str:
        return "-".join(str(value) for value in vars(self).values())

    def arguments(self, device: str = "cpu") -> list[Any]:
        width = self.columns + (7 if self.kind == "padded" else 0)
        z = uniform(self.rows, width, seed=1)[:, : self.columns] * self.largest
        if self.kind == "infinite":
            z = z.masked_fill(uniform(self.rows, self.columns, seed=2) > 0.4, -torch.inf)
            z[:, -1] = 1.0
        generator = torch.Generator().manual_seed(3)
        target = torch.randint(0, self.columns, (self.rows,), generator=generator)
        if self.kind == "infinite":
            target[:] = self.columns - 1
        if self.ignored != "none":
            target[:: 1 if self.ignored == "all" else 3] = IGNORED
        padded = torch.full((self.rows, width), 99.0, dtype=DTYPES[self.dtype], device=device)
        logits = padded[:, : self.columns]
        logits.copy_(as_dtype(z, DTYPES[self.dtype], device))
        factor = torch.tensor(self.factor, device=device)
        return [logits, target.to(device), factor, IGNORED, self.scale, self.softcap, self.gradient, False]


SIZES = ((1, 1), (3, 5), (4, 64), (5, 65), (7, 300))
CASES = [
    *(Case(*size, dtype=dtype) for size in SIZES for dtype in DTYPES),
    *(Case(5, 100, scale=scale, softcap=cap) for scale in (1.0, 0.3, -2.0) for cap in (0.0, 2.0, 30.0)),
    *(Case(5, 100, dtype=dtype, scale=0.5, softcap=3.0) for dtype in DTYPES),
    *(Case(5, 100, ignored=ignored) for ignored in ("all", "none")),
    *(Case(5, 100, largest=largest, softcap=cap) for largest in (1e-3, 100.0, 3e4) for cap in (0.0, 30.0)),
    *(Case(5, 150, kind=kind) for kind in ("padded", "infinite")),
    *(Case(5, 100, factor=factor) for factor in (0.0, -3.0, 1e-6)),
    *(Case(5, 100, softcap=cap, gradient=False) for cap in (0.0, 2.0)),
    Case(0, 5),
]


def truth(
    logits: Tensor, target: Tensor, factor: Tensor, ignore_index: int, scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    """The losses in float64, and the gradient of their sum times the factor."""
    z = logits.detach().cpu().double().requires_grad_()
    y = z * scale
    if softcap:
        y = torch.tanh(y / softcap) * softcap
    losses = F.cross_entropy(y, target.cpu(), ignore_index=ignore_index, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum() * factor.double().cpu(), z)
    return losses.detach(), gradient


def complaint(case: Case, run: Callable[[list[Any]], Tensor], device: str = "cpu") -> str | None:
    """Run a case by ``run(arguments)``: None if all is well, else what is wrong."""
    arguments = case.arguments(device)
    before = arguments[0].clone()
    losses, gradient = truth(*arguments[:6])
    result = run(arguments)
    if (result.shape, result.dtype, result.device) != (losses.shape, torch.float32, arguments[0].device):
        return f"{list(result.shape)} {result.dtype} on {result.device}"
    size = case.largest * abs(case.scale)
    bound = 1e-6 * (1 + (min(size, case.softcap) if case.softcap else size)) * 4
    error = (result.cpu().double() - losses).abs()
    if error.numel() and not error.max() <= bound:
        return f"losses are off by {error.max():.3g}, {bound:.3g} is allowed"
    if (
        case.kind == "padded"
        and (arguments[0].as_strided((case.rows, 7), (case.columns + 7, 1), case.columns) != 99).any()
    ):
        return "written behind a row"
    if not case.gradient:
        return None if torch.equal(arguments[0], before) else "the logits were written over"
    # A float32 logit of this size is off by so much itself, and with it each probability.
    noise = NOISE[case.dtype] + 3e-7 * (min(size, case.softcap) if case.softcap else size)
    allowed = noise * max(abs(case.factor * case.scale), 1e-30)
    if case.dtype == "fp16":
        allowed += 6e-8  # the least that it can say
    excess = (arguments[0].cpu().double() - gradient).abs()
    if excess.numel() and not excess.max() <= allowed:
        return f"the gradient is off by {excess.max():.3g}, {allowed:.3g} is allowed"
    return None


def _run_interpreted(arguments: list[Any]) -> Tensor:
    with mock.patch.object(module, "BLOCK", SMALL_BLOCK):
        result: Tensor = run_device_kernel(OP, arguments)
    return result


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
