"""The table of cases of the ops on packed dropout masks, and what is demanded of the Triton kernels in each.

Run as a program in Triton's interpreter it prints the complaint for each case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from strided_tensors import DTYPES, as_dtype, uniform
from torch import Tensor
from triton_interpreter import print_complaints, results_in_margins, run_device_kernel

import patchkit_kernels.ops.add_masked
import patchkit_kernels.ops.dropout  # noqa: F401, both register ops

PACK, MASKED, MASKED_, ADD_MASKED_ = (
    getattr(torch.ops.patchkit, name).default for name in ("pack_mask", "masked", "masked_", "add_masked_")
)

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    **{f"plain_{size}": lambda size=size: uniform(size, seed=0) for size in (1, 7, 8, 9, 1023, 1024, 1025, 5000)},
    "rows_3x5": lambda: uniform(3, 5, seed=0),
    "rows_33x129": lambda: uniform(33, 129, seed=0),
    "transposed": lambda: uniform(37, 41, seed=0).mT,
    "every_second": lambda: uniform(14, 66, seed=0)[::2, ::2],
    "inner": lambda: uniform(9, 40, seed=0)[1:-1, 3:],
    "expanded_rows": lambda: uniform(1, 9, seed=0).expand(4, 9),
    "expanded_columns": lambda: uniform(9, 1, seed=0).expand(9, 13),
    "one_column": lambda: uniform(6, 4, seed=0)[:, 1:2],
    "three_dimensions": lambda: uniform(3, 4, 5, seed=0),
    "permuted": lambda: uniform(3, 4, 5, seed=0).permute(2, 0, 1),
    "zero_dimensions": lambda: uniform(seed=0),
    "empty": lambda: uniform(0, seed=0),
    "empty_rows": lambda: uniform(0, 5, seed=0),
    "empty_columns": lambda: uniform(3, 0, seed=0),
    "extreme": lambda: torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1e-30, -3.0] * 9).double(),
}


@dataclass(frozen=True)
class Case:
    op: str
    dtype: str
    layout: str
    scale: float
    total: str = "fp32"
    """Of ``add_masked_``: what is added to."""

    @property
    def id(self) -> str:
        total = f"-to-{self.total}" if self.op == "add_masked_" else ""
        return f"{self.op}-{self.dtype}-{self.layout}-{self.scale:.3g}{total}"

    def x(self, device: str = "cpu") -> Tensor:
        x = as_dtype(LAYOUTS[self.layout](), DTYPES[self.dtype], device)
        return x.contiguous() if self.op in ("masked_", "add_masked_") else x

    def mask(self, device: str = "cpu") -> Tensor:
        """Of the layout's strides too."""
        layout = LAYOUTS[self.layout]()
        kept = torch.rand(layout.shape, generator=torch.Generator().manual_seed(1)) < 0.6
        return torch.empty_like(layout, dtype=torch.bool, device=device).copy_(kept)


CASES = [
    *(Case("pack_mask", "fp32", layout, 1.0) for layout in LAYOUTS),
    *(
        Case(op, dtype, layout, scale)
        for op in ("masked", "masked_")
        for dtype in DTYPES
        for layout in LAYOUTS
        for scale in (1 / 0.9,)
    ),
    *(Case("masked", "bf16", "rows_33x129", scale) for scale in (0.0, 1.0, 1 / 0.3)),
    *(Case("add_masked_", dtype, layout, 1 / 0.9, dtype) for dtype in DTYPES for layout in LAYOUTS),
    *(Case("add_masked_", dtype, "plain_1025", 2.0, total) for dtype in DTYPES for total in DTYPES),
    *(Case("add_masked_", "bf16", "rows_33x129", scale, "bf16") for scale in (0.0, 1.0, 1 / 0.3)),
]


def packed(mask: Tensor) -> Tensor:
    """Eight bits to a byte, the slow way."""
    bits = mask.cpu().flatten().int()
    bits = torch.cat([bits, bits.new_zeros(-len(bits) % 8)]).view(-1, 8)
    return (bits * 2 ** torch.arange(8)).sum(1).to(mask.device, torch.uint8)


def complaint(case: Case, run: Callable[[Any, list[Any]], Any], device: str = "cpu") -> str | None:
    """Run a case by ``run(op, arguments)``: None if all is well, else what is wrong. Exact, to the bit."""
    x, mask = case.x(device), case.mask(device)
    if case.op == "pack_mask":
        return _differ(run(PACK, [mask]), packed(mask))
    # As the kernels and torch.native_dropout do: in fp32, rounded once.
    expected = (x.float() * mask * torch.tensor(case.scale, dtype=torch.float32)).to(x.dtype).contiguous()
    arguments = [x, packed(mask), case.scale]
    if case.op == "masked_":
        run(MASKED_, arguments)
        return _differ(x, expected)
    if case.op == "add_masked_":
        return _added(case, run, arguments, mask)
    return _differ(run(MASKED, arguments), expected) or _differ(x, case.x(device))


def _added(case: Case, run: Callable[[Any, list[Any]], Any], arguments: list[Any], mask: Tensor) -> str | None:
    """A kernel may round the product before it adds or not: within one rounding of the sum, and the product's in fp32.

    The reference rounds the product to its dtype too.
    """
    x, *_ = arguments
    before = as_dtype(uniform(*x.shape, seed=7), DTYPES[case.total], str(x.device))
    total, same = before.clone(), x.clone()
    run(ADD_MASKED_, [total, *arguments])
    if _differ(x, same):
        return "what is added was written over"
    product = x.double() * mask * case.scale
    expected = before.double() + product
    rounded = expected.to(total.dtype)
    if total.dtype != rounded.dtype or total.shape != rounded.shape:
        return f"{list(total.shape)} {total.dtype}"
    odd = total.isnan() != rounded.isnan()
    off = (total.double() - expected).abs()
    units = torch.finfo(total.dtype).eps * expected.abs() + 2 * torch.finfo(x.dtype).eps * product.abs()
    finite = expected.abs() < torch.finfo(total.dtype).max
    wrong = odd | (finite & (off > units)) | (~finite & ~expected.isnan() & (total != rounded))
    return f"{total[wrong].tolist()}, not {expected[wrong].tolist()}" if wrong.any() else None


def _differ(result: Tensor, expected: Tensor) -> str | None:
    if (result.shape, result.dtype, result.device) != (expected.shape, expected.dtype, expected.device):
        return f"{list(result.shape)} {result.dtype} on {result.device}"
    if result.stride() != expected.stride():
        return f"strides {result.stride()}"
    same = (result == expected) & (result.signbit() == expected.signbit()) | (result.isnan() & expected.isnan())
    if not same.all():
        return f"{result[~same].tolist()}, not {expected[~same].tolist()}"
    return None


def _run_interpreted(op: Any, arguments: list[Any]) -> Any:
    with results_in_margins():
        return run_device_kernel(op, arguments)


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
