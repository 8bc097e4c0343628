"""The gated activations' table of cases, and what is demanded of the Triton kernels in each.

Shared by the tests in Triton's interpreter and those on a real device. Run as a program (``TRITON_INTERPRET=1 python
gated_activation_cases.py``) it prints, as JSON, the complaint for each case's id, or null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from strided_tensors import DTYPES, as_dtype, uniform
from torch import Tensor
from triton_interpreter import print_complaints, results_in_margins, run_device_kernel

import patchkit_kernels.ops.geglu as geglu
import patchkit_kernels.ops.swiglu as swiglu
from patchkit_kernels.ops.gated_activation import GatedActivation


@dataclass(frozen=True)
class Activation:
    """The functions under test and, independent of them, what they must compute."""

    kernel: GatedActivation
    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    eager: Callable[[Tensor], Tensor]
    """The activation as a transformers model calls it."""
    formula: Callable[[Tensor], Tensor]
    """The activation as the paper writes it."""

    @property
    def op(self) -> Any:
        return getattr(torch.ops.patchkit, self.kernel.name).default

    @property
    def backward_op(self) -> Any:
        return getattr(torch.ops.patchkit, f"{self.kernel.name}_backward").default

    @property
    def recompute_op(self) -> Any:
        return getattr(torch.ops.patchkit, f"{self.kernel.name}_backward_recompute").default

    def op_of(self, direction: str) -> Any:
        return {"forward": self.op, "backward": self.backward_op, "recompute": self.recompute_op}[direction]


ACTIVATIONS = {
    "swiglu": Activation(
        swiglu.SWIGLU, swiglu.swiglu, swiglu.swiglu_backward, F.silu, lambda x: x / (1 + torch.exp(-x))
    ),
    "geglu_erf": Activation(
        geglu.GEGLU_ERF,
        geglu.geglu_erf,
        geglu.geglu_erf_backward,
        F.gelu,
        lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    ),
    "geglu_tanh": Activation(
        geglu.GEGLU_TANH,
        geglu.geglu_tanh,
        geglu.geglu_tanh_backward,
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
}
DIRECTIONS = ("forward", "backward", "recompute")


def three(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Grad, gate and up; gate and up are halves of one tensor."""
    gate, up = uniform(*shape[:-1], 2 * shape[-1], seed=1).to(dtype).chunk(2, -1)
    return [uniform(*shape, seed=2).to(dtype), gate, up]


def _halves(*shape: int) -> list[Tensor]:
    """Gate and up as the halves of one fused tensor, and a gradient that is half of another."""
    gate, up = uniform(*shape[:-1], 2 * shape[-1], seed=1).chunk(2, -1)
    return [uniform(*shape[:-1], 2 * shape[-1], seed=3).chunk(2, -1)[1], gate, up]


def _plain(*shape: int) -> list[Tensor]:
    return [uniform(*shape, seed=seed) for seed in (3, 1, 2)]


def _extreme_gate() -> list[Tensor]:
    gate = [20.0, -20.0, 100.0, -100.0, float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1e-4]
    up = [1.0, -2.0, 0.0]
    gate_grid, up_grid = torch.meshgrid(torch.tensor(gate).double(), torch.tensor(up).double(), indexing="ij")
    return [torch.full_like(gate_grid, 0.5), gate_grid.contiguous(), up_grid.contiguous()]


def _extreme_up_and_grad() -> list[Tensor]:
    values = torch.tensor([1.0, -1.0, float("inf"), -float("inf"), float("nan"), 0.0]).double()
    grids = torch.meshgrid(values, torch.tensor([-2.0, 0.0, 1.5]).double(), values, indexing="ij")
    return [grid.contiguous() for grid in grids]


# Each layout makes [grad, gate, up] in fp64; `Case.inputs` rounds them to the dtype without touching the strides.
SIZES = (1, 7, 128, 1000, 4097)
LAYOUTS: dict[str, Callable[[], list[Tensor]]] = {
    **{f"contiguous_{size}": lambda size=size: _plain(size) for size in SIZES},
    **{f"halves_3x{size}": lambda size=size: _halves(3, size) for size in SIZES},
    "halves_2x3x5": lambda: _halves(2, 3, 5),
    "halves_of_gate_and_up_only": lambda: [_plain(3, 70)[0], *_halves(3, 70)[1:]],
    "three_row_strides": lambda: [_plain(4, 8 + extra)[extra][:, :8] for extra in range(3)],
    "every_second_row": lambda: [tensor[::2] for tensor in _plain(7, 33)],
    "uneven_rows": lambda: [tensor[:, 1:] for tensor in _plain(3, 4, 17)],
    "every_second_column": lambda: [tensor[:, ::2] for tensor in _plain(5, 33)],
    "transposed": lambda: [tensor.mT for tensor in _plain(9, 31)],
    "expanded_grad": lambda: [torch.tensor(1.5).double().expand(4, 9), *_halves(4, 9)[1:]],
    "expanded_rows": lambda: [tensor.expand(4, 9) for tensor in _plain(1, 9)],
    "one_column": lambda: [tensor[:, :1] for tensor in _plain(6, 4)],
    "zero_dimensions": lambda: _plain(),
    "four_dimensions": lambda: _plain(2, 1, 3, 5),
    "empty": lambda: _plain(0),
    "empty_rows": lambda: _halves(0, 5),
    "empty_columns": lambda: _plain(3, 0),
    "extreme_gate": _extreme_gate,
    "extreme_up_and_grad": _extreme_up_and_grad,
}


@dataclass(frozen=True)
class Case:
    activation: str
    direction: str
    dtype: str
    layout: str

    @property
    def id(self) -> str:
        return f"{self.activation}-{self.direction}-{self.dtype}-{self.layout}"

    def inputs(self, device: str = "cpu") -> list[Tensor]:
        """Gate and up, after the gradient in a backward direction, with the layout's strides.

        A gradient that is to be written over lies in adjacent rows of its own.
        """
        tensors = []
        for tensor in LAYOUTS[self.layout]()[1 if self.direction == "forward" else 0 :]:
            tensors.append(as_dtype(tensor, DTYPES[self.dtype], device))
        if self.direction == "recompute":
            tensors[0] = tensors[0].clone(memory_format=torch.contiguous_format)
        return tensors


CASES = [
    Case(activation, direction, dtype, layout)
    for activation in ACTIVATIONS
    for direction in DIRECTIONS
    for dtype in DTYPES
    for layout in LAYOUTS
]


def eager(activation: Activation, tensors: list[Tensor], with_hidden: bool = False) -> tuple[Tensor, ...]:
    """What torch computes, step by step, in the dtype of ``tensors``: ``[gate, up]`` or ``[grad, gate, up]``."""
    gate, up = (tensor.detach().requires_grad_() for tensor in tensors[-2:])
    hidden = activation.eager(gate) * up
    gradients = torch.autograd.grad(hidden, (gate, up), tensors[0]) if len(tensors) == 3 else ()
    return (*gradients, hidden.detach()) if with_hidden or not gradients else gradients


def truth(activation: Activation, tensors: list[Tensor], with_hidden: bool = False) -> tuple[Tensor, ...]:
    """The same in fp64, on the CPU, where the values of ``tensors`` are exact."""
    return eager(activation, [tensor.cpu().double() for tensor in tensors], with_hidden)


def complaint(case: Case, run: Callable[[Any, list[Tensor]], Any], device: str = "cpu") -> str | None:
    """Run a case's kernel by ``run(op, tensors)``: None if all is well, else what is wrong."""
    noise = 2e-7 if device == "cpu" else 4e-7  # GPUs approximate exp and division to 2 ulp
    activation = ACTIVATIONS[case.activation]
    tensors = case.inputs(device)
    before, recompute = [tensor.clone() for tensor in tensors], case.direction == "recompute"
    expected, by_eager = truth(activation, tensors, recompute), eager(activation, tensors, recompute)
    results = run(activation.op_of(case.direction), tensors)
    results = (results,) if isinstance(results, Tensor) else tuple(results)
    if recompute:
        # The gradient of the gate is written over the gradient that was given.
        results, tensors, before = (tensors[0], *results), [before[0], *tensors[1:]], before
    for tensor, copy in zip(tensors, before, strict=True):
        if not torch.equal(tensor.nan_to_num(7.0), copy.nan_to_num(7.0)):
            return "an input was modified"
    if len(results) != len(expected):
        return f"{len(results)} results, not {len(expected)}"
    for index, (result, exact, other) in enumerate(zip(results, expected, by_eager, strict=True)):
        # The hidden state does not depend on the gradient, so neither does its bound.
        problem = _compare(result, exact, other, tensors[1:] if index == 2 else tensors, noise)
        if problem is not None:
            return f"result {index}: {problem}"
    return None


def _compare(result: Tensor, exact: Tensor, by_eager: Tensor, tensors: list[Tensor], noise: float) -> str | None:
    dtype = tensors[0].dtype
    if result.shape != exact.shape or result.dtype != dtype or result.device != tensors[0].device:
        return f"{list(result.shape)} {result.dtype} on {result.device}"
    if not result.is_contiguous():
        return f"strides {result.stride()}"
    got, other = result.cpu().double(), by_eager.cpu().double()
    finite = exact.isfinite()
    if not torch.equal(torch.where(finite, 0.0, exact).nan_to_num(7.0), torch.where(finite, 0.0, got).nan_to_num(7.0)):
        return f"NaN or infinity: {got[~finite].tolist()}, not {exact[~finite].tolist()}"
    # One rounding to the dtype, plus what fp32 loses on the way: absolute, since 1 - sigmoid and 1 + erf cancel.
    magnitudes = [tensor.cpu().double().nan_to_num(1, 1, 1).abs() for tensor in tensors]
    scale = (magnitudes[-2] + 1) * (magnitudes[-1] + 1) * (magnitudes[0] if len(tensors) == 3 else 1)
    info = torch.finfo(dtype)
    bound = 0.5 * info.eps * exact.abs() + 0.5 * info.smallest_normal * info.eps + noise * scale
    excess = torch.where(finite, (got - exact).abs() / bound, 0.0)
    if excess.numel() and not excess.max() <= 1.01:
        return f"error of {excess.max():.3g} times the bound"
    # The criterion of patchkit/testing/rounding.py, which is not imported: this file also runs where patchkit's
    # dependencies are missing. In fp32 both see only noise, which passes whatever eager does.
    error, eager_error = (got - exact)[finite].norm(), (other - exact)[finite].norm()
    floor = noise * exact[finite].norm()
    if not error <= 1.1 * eager_error + floor:
        return f"error {error:.3g}, but eager torch has {eager_error:.3g}"
    return None


def _run_interpreted(op: Any, tensors: list[Tensor]) -> Any:
    with results_in_margins():
        return run_device_kernel(op, tensors)


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
