"""The table of cases of a gated MLP's rank-r products, and what is demanded of the Triton kernels and of the reference.

Run as a program in Triton's interpreter it prints the complaint for each case.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from dora_norm_cases import VIEWS
from strided_tensors import DTYPES, as_dtype
from torch import Tensor
from triton_interpreter import print_complaints, results_in_margins, run_device_kernel

from patchkit_kernels.ops import gated_low_rank, gated_low_rank_backward
from patchkit_kernels.ops.activations import GATED
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES

FORWARD = torch.ops.patchkit.gated_low_rank.default
BACKWARD = torch.ops.patchkit.gated_low_rank_backward.default
SCALES = [0.7, 1.3]

FIELDS = ("gated_low_rank", "gated_low_rank_backward", "gated_low_rank_backward_float32")
"""Of the sizes of launches."""

UNIT = 2.0**-23
"""Of fp32: the error of a sum is a few roundings of what it would be without cancellation."""

LEFT_OUT = 2.0**-16
"""Of a product of two fp32 operands whose sum is rounded to bf16."""


@dataclass(frozen=True)
class Case:
    """Sizes, dtypes and views. ``small`` has spans and strips so small that there are several; ``size`` is of the grids
    of launches."""

    tokens: int
    columns: int
    ranks: tuple[int, int, int] = (3, 3, 3)
    wide: str = "fp32"
    factors: str = "fp32"
    activation: str = "silu"
    view: str = "plain"
    small: bool = False
    size: int = 0

    @property
    def id(self) -> str:
        ranks = "_".join(map(str, dict.fromkeys(self.ranks)))
        kind = [self.wide, self.factors, self.activation, self.view, *(["small"] if self.small else [])]
        kind += [f"size {self.size}"] if self.size else []
        return "-".join([f"{self.tokens}x{self.columns}r{ranks}", *kind])

    def _wide(self, seed: int, device: str) -> Tensor:
        # Within [-1.5, 1.5], where every activation and its derivative are far from their limits.
        return as_dtype(VIEWS["plain"](self.tokens, self.columns, seed) / 4, DTYPES[self.wide], device)

    def _small(self, shape: tuple[int, int], seed: int, device: str) -> Tensor:
        return as_dtype(VIEWS[self.view](*shape, seed) / 6, DTYPES[self.factors], device)

    def forward(self, device: str = "cpu") -> list[Any]:
        reduced = [self._small((self.tokens, rank), 2 + i, device) for i, rank in enumerate(self.ranks[:2])]
        return [self._wide(0, device), self._wide(1, device), reduced, self._factors(device), SCALES, self.activation]

    def backward(self, device: str = "cpu") -> list[Any]:
        gate, up, reduced, *rest = self.forward(device)
        reduced = [*reduced, self._small((self.tokens, self.ranks[2]), 8, device)]
        return [self._wide(9, device), gate, up, reduced, *rest]

    def _factors(self, device: str) -> list[Tensor]:
        of_gate, of_up, of_down = self.ranks
        shapes = ((self.columns, of_gate), (self.columns, of_up), (of_down, self.columns))
        return [self._small(shape, 5 + i, device) for i, shape in enumerate(shapes)]


def _random_cases(count: int) -> list[Case]:
    chosen = random.Random(0)
    return [
        Case(
            chosen.randint(1, 90),
            chosen.randint(1, 150),
            tuple(chosen.choices(range(1, 33), k=3)),  # type: ignore[arg-type]
            chosen.choice(list(DTYPES)),
            chosen.choice(list(DTYPES)),
            chosen.choice(list(GATED)),
            chosen.choice(list(VIEWS)),
            chosen.random() < 0.5,
        )
        for _ in range(count)
    ]


CASES = [
    *(
        Case(70, 140, (17, 3, 5), "bf16", factors, size=size)
        for factors in ("bf16", "fp32")
        for size in range(1, max(len(GRID[field]) for field in FIELDS))
    ),
    *(
        Case(37, 131, (rank,) * 3, *dtypes)
        for rank in (1, 8, 16, 17)
        for dtypes in (("bf16", "fp32"), ("fp32", "fp32"))
    ),
    *(Case(40, 70, (4, 4, 4), wide, factors) for wide in DTYPES for factors in DTYPES),
    *(Case(33, 66, (3, 5, 20), "bf16", "fp32", view=view) for view in VIEWS),
    *(Case(9, 17, activation=activation) for activation in GATED),
    *(
        Case(100, 150, (3, 2, 5), wide, factors, small=True)
        for wide in ("fp32", "bf16")
        for factors in ("fp32", "bf16")
    ),
    *(Case(*size) for size in ((1, 1), (64, 32), (32, 128), (33, 129), (0, 5), (3, 0), (0, 0))),
    Case(3, 5, (0, 0, 0)),
    Case(3, 5, (0, 2, 1)),
    *_random_cases(12),
]


def complaint(case: Case, run: Callable[[Any, list[Any]], Any], device: str = "cpu") -> str | None:
    """Run both ops of a case by ``run(op, arguments)``: None if all is well, else what is wrong."""
    with ExitStack() as stack:
        if case.small:
            for module, value in ((gated_low_rank, 64), (gated_low_rank_backward, 32)):
                stack.enter_context(mock.patch.object(module, "SPAN", value))
        sizes = {field: grid[min(case.size, len(grid) - 1)] for field, grid in GRID.items() if field in FIELDS}
        stack.enter_context(LAUNCH_SIZES.changed(**sizes))
        return _of_forward(case, run, device) or _of_backward(case, run, device)


def _double(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.cpu().double() for tensor in tensors]


def _of_forward(case: Case, run: Callable[[Any, list[Any]], Any], device: str) -> str | None:
    arguments = case.forward(device)
    gate, up, reduced, factors, _, _ = arguments
    before, ts, (b_gate, b_up, a_down) = _double([gate, up]), _double(reduced), _double(factors)
    hidden, t_down = run(FORWARD, arguments)
    for name, base, t, factor, scale, found in zip(
        ("gate", "up"), before, ts, (b_gate, b_up), SCALES, (gate, up), strict=True
    ):
        upper = base.abs() + scale * t.abs() @ factor.t().abs()
        wrong = _wrong(name, found, base + scale * t @ factor.t(), upper, DTYPES[case.wide], device, case)
        if wrong:
            return wrong
    # Of the gate and up that were written.
    wide_gate, wide_up = _double([gate, up])
    value = GATED[case.activation].activation.function(wide_gate)  # type: ignore[index]
    upper = (wide_gate.abs() + 1) * wide_up.abs()  # no value is greater than that
    wrong = _wrong("hidden", hidden, value * wide_up, upper, DTYPES[case.wide], device, case)
    wide_hidden = hidden.cpu().double()
    upper = wide_hidden.abs() @ a_down.t().abs()
    return (
        wrong
        or _wrong("t", t_down, wide_hidden @ a_down.t(), upper, DTYPES[case.factors], device, case, exact=True)
        or _changed([*reduced, *factors], [*case.forward(device)[2], *case.forward(device)[3]])
    )


def _of_backward(case: Case, run: Callable[[Any, list[Any]], Any], device: str) -> str | None:
    arguments = case.backward(device)
    grad, gate, up, reduced, factors, _, _ = arguments
    (base, wide_gate, wide_up), (t_gate, t_up, dt_down) = _double([grad, gate, up]), _double(reduced)
    b_gate, b_up, a_down = _double(factors)
    d_up, d_reduced, d_gate_factor, d_up_factor, d_down_factor = run(BACKWARD, arguments)
    function = GATED[case.activation].activation  # type: ignore[index]
    d_hidden = base + dt_down @ a_down
    upper = base.abs() + dt_down.abs() @ a_down.abs()
    value = function.function(wide_gate)
    exact = function.gradient_(d_hidden * wide_up, wide_gate)
    steep = 2 * (wide_gate.abs() + 1)  # no derivative is greater than that, and no value than that times |gate| + 1
    wrong = _wrong("d_gate", grad, exact, upper * wide_up.abs() * steep, DTYPES[case.wide], device, case)
    wrong = wrong or _wrong(
        "d_up", d_up, d_hidden * value, upper * steep * (wide_gate.abs() + 1), DTYPES[case.wide], device, case
    )
    if wrong:
        return wrong
    wide = DTYPES[case.wide]
    d_gate, wide_d_up = _double([grad, d_up])
    hidden = (value * wide_up).to(wide).double()
    # Hidden is not written: made again of the same numbers, it may be rounded to the other neighbour.
    slack = torch.finfo(wide).eps * dt_down.t().abs() @ hidden.abs() / 2
    both = [(SCALES[0], d_gate, b_gate, t_gate), (SCALES[1], wide_d_up, b_up, t_up)]
    sums = [
        ("dt", d_reduced, *(torch.cat(x, 1) for x in zip(*[_product(s, dy, b) for s, dy, b, _ in both], strict=True))),
        ("dB of gate", d_gate_factor, *_product(SCALES[0], d_gate.t(), t_gate)),
        ("dB of up", d_up_factor, *_product(SCALES[1], wide_d_up.t(), t_up)),
        ("dA of down", d_down_factor, *_product(1.0, dt_down.t(), hidden)),
    ]
    for name, found, expected, magnitude in sums:
        more = slack if name == "dA of down" else 0.0
        wrong = _wrong(name, found, expected, magnitude, DTYPES[case.factors], device, case, exact=True, slack=more)
        if wrong:
            return wrong
    again = case.backward(device)
    return _changed([gate, up, *reduced, *factors], [*again[1:3], *again[3], *again[4]])


def _product(scale: float, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    return scale * left @ right, scale * left.abs() @ right.abs()


def _wrong(
    name: str,
    found: Tensor,
    expected: Tensor,
    upper: Tensor,
    dtype: torch.dtype,
    device: str,
    case: Case,
    *,
    exact: bool = False,
    slack: Tensor | float = 0.0,
) -> str | None:
    """``upper``: what each element would be without cancellation. ``exact``: whether its products are."""
    if (found.shape, found.dtype, found.device.type) != (expected.shape, dtype, torch.device(device).type):
        return f"{name}: {list(found.shape)} {found.dtype} on {found.device}"
    if not found.is_contiguous():
        return f"{name} has strides {found.stride()}"
    pieces = not exact and case.wide == "bf16" and case.factors == "fp32"
    unit = UNIT * (8 + max(case.tokens, case.columns) ** 0.5) + (LEFT_OUT if pieces else 0.0)
    tiny = torch.finfo(dtype).smallest_normal
    bound = torch.finfo(dtype).eps / 2 * expected.abs() + unit * upper + slack + tiny
    error = (found.cpu().double() - expected).abs()
    return None if (error <= bound).all() else f"{name}: error of {(error / bound).max():.3g} times the bound"


def _changed(found: list[Tensor], before: list[Tensor]) -> str | None:
    same = all(torch.equal(x, y) for x, y in zip(found, before, strict=True))
    return None if same else "an input was modified"


def _run_interpreted(op: Any, arguments: list[Any]) -> Any:
    with results_in_margins():
        return run_device_kernel(op, arguments)


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
