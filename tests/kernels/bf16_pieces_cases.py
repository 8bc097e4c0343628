"""The table of cases of the pieces of a float32 matrix, and what is demanded of the Triton kernel and of the reference.

Run as a program in Triton's interpreter it prints the complaint for each case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from strided_tensors import uniform
from torch import Tensor
from triton_interpreter import print_complaints, results_in_margins, run_device_kernel

from patchkit_kernels.ops.bf16_pieces import LAYOUTS, Layout

OP = torch.ops.patchkit.bf16_pieces.default

VIEWS: dict[str, Callable[[int, int], Tensor]] = {
    "plain": lambda rows, columns: uniform(rows, columns, seed=0),
    "transposed": lambda rows, columns: uniform(columns, rows, seed=0).mT,
    "stepped": lambda rows, columns: uniform(2 * rows, 3 * columns, seed=0)[1::2, 2::3],
    "inner": lambda rows, columns: uniform(rows + 3, columns + 5, seed=0)[2:-1, 5:],
    "expanded": lambda rows, columns: uniform(1, columns, seed=0).expand(rows, columns),
    "wide range": lambda rows, columns: 2.0 ** (8 * uniform(rows, columns, seed=0)) * uniform(rows, columns, seed=1),
}


@dataclass(frozen=True)
class Case:
    rows: int
    columns: int
    order: tuple[int, ...] = (0, 1, 2)
    layout: Layout = "above"
    scale: float = 1.0
    view: str = "plain"

    @property
    def id(self) -> str:
        order = "".join(map(str, self.order))
        return f"{self.rows}x{self.columns}-{order}-{self.layout}-{self.scale}-{self.view}"

    def arguments(self, device: str = "cpu") -> list[Any]:
        wide = VIEWS[self.view](self.rows, self.columns)
        base = torch.tensor([], dtype=torch.float64).set_(wide.untyped_storage()).to(device, torch.float32)
        x = base.as_strided(wide.shape, wide.stride(), wide.storage_offset())
        return [x, self.scale, self.order, self.layout]


CASES = [
    *(Case(5, 7, order, layout, 0.7) for order in ((0, 1, 2), (0, 0, 1), (0, 1, 0), (2,)) for layout in LAYOUTS),
    *(Case(33, 70, layout=layout, view=view) for view in VIEWS for layout in LAYOUTS),
    *(Case(*size, layout=layout) for size in ((0, 5), (3, 0), (1, 1), (1, 513), (512, 1)) for layout in LAYOUTS),
]


def complaint(case: Case, run: Callable[[list[Any]], Tensor], device: str = "cpu") -> str | None:
    """Run a case by ``run(arguments)``: None if all is well, else what is wrong."""
    arguments = case.arguments(device)
    x = arguments[0].cpu() * torch.tensor(case.scale, dtype=torch.float32)
    pieces = run(arguments)
    if not pieces.is_contiguous() or (pieces.dtype, pieces.device) != (torch.bfloat16, arguments[0].device):
        return f"{pieces.dtype} on {pieces.device} with strides {pieces.stride()}"
    found = pieces.cpu().double().movedim(LAYOUTS.index(case.layout), 0)
    if found.shape != (len(case.order), case.rows, case.columns):
        return f"{list(pieces.shape)}"
    rest = x.double()
    expected = []
    for _ in range(3):
        expected.append(rest.to(torch.float32).to(torch.bfloat16).double())
        rest = rest - expected[-1]
    if rest.any():
        return "the three pieces are not all"
    for piece, got in zip(case.order, found, strict=True):
        if not torch.equal(got, expected[piece]):
            return f"another piece {piece}"
    if not torch.equal(arguments[0], case.arguments(device)[0]):
        return "the input was modified"
    return None


def _run_interpreted(arguments: list[Any]) -> Tensor:
    with results_in_margins():
        result: Tensor = run_device_kernel(OP, arguments)
    return result


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
