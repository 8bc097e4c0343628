"""The table of cases of the activations, plain and gated, and what is demanded of the Triton kernels in each.

Shared by the tests in Triton's interpreter and those on a real device. Run as a program (``TRITON_INTERPRET=1 python
activation_cases.py``) it prints, as JSON, the complaint for each case's id, or null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from strided_tensors import DTYPES, as_dtype, uniform
from torch import Tensor
from triton_interpreter import print_complaints, results_in_margins, run_device_kernel

from patchkit_kernels.ops.activations import GATED, PLAIN
from patchkit_kernels.ops.elementwise import ElementwiseOps
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES


@dataclass(frozen=True)
class Activation:
    """The functions under test and, independent of them, what they must compute."""

    kernel: ElementwiseOps
    eager: Callable[[Tensor], Tensor]
    """The activation as a transformers model calls it."""
    formula: Callable[[Tensor], Tensor]
    """The activation as the paper writes it."""

    @property
    def gated(self) -> bool:
        return len(self.kernel.inputs) == 2

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.kernel.forward(*inputs)

    def backward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Of grad and the inputs."""
        return as_tuple(self.kernel.backward(*tensors))

    def of(self, act: Callable[[Tensor], Tensor], *inputs: Tensor) -> Tensor:
        """What is computed of the inputs if this is the activation."""
        return act(inputs[0]) * inputs[1] if self.gated else act(inputs[0])

    @property
    def op(self) -> Any:
        return getattr(torch.ops.patchkit, self.kernel.name).default

    @property
    def backward_op(self) -> Any:
        return getattr(torch.ops.patchkit, f"{self.kernel.name}_backward").default

    @property
    def recompute_op(self) -> Any:
        return getattr(torch.ops.patchkit, f"{self.kernel.name}_backward_recompute").default

    @property
    def packed_op(self) -> Any:
        return getattr(torch.ops.patchkit, f"{self.kernel.name}_backward_packed").default

    def op_of(self, direction: str) -> Any:
        ops = {"forward": "op", "backward": "backward_op", "recompute": "recompute_op", PACKED: "packed_op"}
        return getattr(self, ops[direction])


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def _tanh_formula(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


# By the name: as a transformers model calls it, as the paper writes it, and what the gated ops are called.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "silu": (F.silu, lambda x: x / (1 + torch.exp(-x)), "swiglu"),
    "gelu_erf": (F.gelu, lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), "geglu_erf"),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), _tanh_formula, "geglu_tanh"),
    "relu": (torch.relu, lambda x: (x + x.abs()) / 2, "reglu"),
    "relu2": (lambda x: torch.square(F.relu(x)), lambda x: x * (x + x.abs()) / 2, "relu2_glu"),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: x / (1 + torch.exp(-1.702 * x)), "quick_geglu"),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + torch.exp(-x)), "glu"),
}
ACTIVATIONS = {
    **{gated: Activation(GATED[name], *functions) for name, (*functions, gated) in FUNCTIONS.items()},
    **{name: Activation(PLAIN[name], *functions) for name, (*functions, _) in FUNCTIONS.items()},
}
"""By the name of the op."""
DIRECTIONS = ("forward", "backward", "recompute")
PACKED = "packed"
"""As "recompute" of gate and up, with their gradients side by side."""


def tensors_for(activation: Activation, *shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Grad and the inputs; gate and up are halves of one tensor."""
    halves = uniform(*shape[:-1], 2 * shape[-1], seed=1).to(dtype).chunk(2, -1)
    return [uniform(*shape, seed=2).to(dtype), *halves[: len(activation.kernel.inputs)]]


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


# Each layout makes [grad, gate, up] in fp64, of which a plain activation takes the first two; `Case.inputs` rounds them
# to the dtype without touching the strides.
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
    size: int = 0
    """Of the grid of launches."""
    wide: bool = False
    """Whether hidden, which is computed again, is wanted in float32."""

    @property
    def id(self) -> str:
        size = f"-size {self.size}" if self.size else ""
        wide = "-wide" if self.wide else ""
        return f"{self.activation}-{self.direction}-{self.dtype}-{self.layout}{size}{wide}"

    def inputs(self, device: str = "cpu") -> list[Tensor]:
        """The inputs, after the gradient in a backward direction, with the layout's strides.

        A gradient that is to be written over lies in adjacent rows of its own.
        """
        tensors = []
        count = 1 + len(ACTIVATIONS[self.activation].kernel.inputs)
        for tensor in LAYOUTS[self.layout]()[1 if self.direction == "forward" else 0 : count]:
            tensors.append(as_dtype(tensor, DTYPES[self.dtype], device))
        if self.direction in ("recompute", PACKED):
            tensors[0] = tensors[0].clone(memory_format=torch.contiguous_format)
        return tensors


# What a layout tells of rows and strides it tells of every activation: the others have those that tell of values.
EVERY_LAYOUT = ("swiglu", "geglu_erf", "geglu_tanh", "silu")
OF_VALUES = ("contiguous_1000", "halves_3x7", "empty", "extreme_gate", "extreme_up_and_grad")
CASES = [
    Case(activation, direction, dtype, layout)
    for activation in ACTIVATIONS
    for direction in DIRECTIONS
    for dtype in DTYPES
    for layout in (LAYOUTS if activation in EVERY_LAYOUT else OF_VALUES)
]
CASES += [
    Case(activation, PACKED, dtype, layout)
    for activation in ACTIVATIONS
    for dtype in DTYPES
    for layout in (LAYOUTS if activation == "swiglu" else OF_VALUES)
    if ACTIVATIONS[activation].gated and layout != "zero_dimensions"
]
CASES += [
    Case(activation, direction, "bf16", "contiguous_1000", size)
    for activation in ("swiglu", "silu")
    for direction in DIRECTIONS
    for size in range(1, len(GRID["elementwise"]))
]
CASES += [
    Case(activation, "recompute", dtype, layout, wide=True)
    for activation in ACTIVATIONS
    for dtype in ("bf16", "fp16")
    for layout in OF_VALUES
]


def eager(activation: Activation, tensors: list[Tensor], with_hidden: bool = False) -> tuple[Tensor, ...]:
    """What torch computes, step by step, in the dtype of ``tensors``: the inputs, or grad and the inputs."""
    count = len(activation.kernel.inputs)
    inputs = [tensor.detach().requires_grad_() for tensor in tensors[-count:]]
    hidden = activation.of(activation.eager, *inputs)
    gradients = torch.autograd.grad(hidden, inputs, tensors[0]) if len(tensors) > count else ()
    return (*gradients, hidden.detach()) if with_hidden or not gradients else gradients


def truth(activation: Activation, tensors: list[Tensor], with_hidden: bool = False) -> tuple[Tensor, ...]:
    """The same in fp64, on the CPU, where the values of ``tensors`` are exact."""
    return eager(activation, [tensor.cpu().double() for tensor in tensors], with_hidden)


def complaint(case: Case, run: Callable[[Any, list[Tensor]], Any], device: str = "cpu") -> str | None:
    """Run a case's kernel by ``run(op, tensors)``: None if all is well, else what is wrong."""
    noise = 2e-7 if device == "cpu" else 4e-7  # GPUs approximate exp and division to 2 ulp
    activation = ACTIVATIONS[case.activation]
    tensors = case.inputs(device)
    before, recompute = [tensor.clone() for tensor in tensors], case.direction in ("recompute", PACKED)
    gate_first = len(case.layout) % 2 == 0
    expected, by_eager = truth(activation, tensors, recompute), eager(activation, tensors, recompute)
    with LAUNCH_SIZES.changed(elementwise=GRID["elementwise"][case.size]):
        more = [gate_first] if case.direction == PACKED else []
        op = activation.op_of(case.direction)
        results = as_tuple(run(partial(op, dtype=torch.float32) if case.wide else op, [*tensors, *more]))
    if case.wide:
        *others, hidden = results
        rounded = hidden.to(tensors[0].dtype)
        if hidden.dtype != torch.float32 or not torch.equal(rounded.float().nan_to_num(7.0), hidden.nan_to_num(7.0)):
            return f"hidden of {hidden.dtype} was not rounded as in forward"
        results = (*others, rounded)
    if case.direction == PACKED:
        # Hidden is written over the gradient that was given.
        (packed,) = results
        if not packed.is_contiguous() or packed.shape[-1] != 2 * tensors[0].shape[-1]:
            return f"{list(packed.shape)}, strides {packed.stride()}"
        halves = [half.contiguous() for half in packed.chunk(2, -1)]
        results, tensors = (*halves[:: 1 if gate_first else -1], tensors[0]), [before[0], *tensors[1:]]
    elif recompute:
        # The gradient of the first input is written over the gradient that was given.
        results, tensors, before = (tensors[0], *results), [before[0], *tensors[1:]], before
    for tensor, copy in zip(tensors, before, strict=True):
        if not torch.equal(tensor.nan_to_num(7.0), copy.nan_to_num(7.0)):
            return "an input was modified"
    if len(results) != len(expected):
        return f"{len(results)} results, not {len(expected)}"
    for index, (result, exact, other) in enumerate(zip(results, expected, by_eager, strict=True)):
        # The hidden state does not depend on the gradient, so neither does its bound.
        is_hidden = case.direction == "forward" or (recompute and index == len(expected) - 1)
        inputs = tensors[-len(activation.kernel.inputs) :]
        problem = _compare(result, exact, other, None if is_hidden else tensors[0], inputs, noise)
        if problem is not None:
            return f"result {index}: {problem}"
    return None


def _compare(
    result: Tensor, exact: Tensor, by_eager: Tensor, grad: Tensor | None, inputs: list[Tensor], noise: float
) -> str | None:
    dtype = inputs[0].dtype
    if result.shape != exact.shape or result.dtype != dtype or result.device != inputs[0].device:
        return f"{list(result.shape)} {result.dtype} on {result.device}"
    if not result.is_contiguous():
        return f"strides {result.stride()}"
    got, other = result.cpu().double(), by_eager.cpu().double()
    finite = exact.isfinite()
    if not torch.equal(torch.where(finite, 0.0, exact).nan_to_num(7.0), torch.where(finite, 0.0, got).nan_to_num(7.0)):
        return f"NaN or infinity: {got[~finite].tolist()}, not {exact[~finite].tolist()}"
    # One rounding to the dtype, plus what fp32 loses on the way: absolute, since 1 - sigmoid and 1 + erf cancel,
    # or relative, where the activation grows faster than its input.
    scale = torch.ones_like(exact)
    for tensor in inputs:
        scale = scale * (_magnitude(tensor) + 1)
    if grad is not None:
        scale = scale * _magnitude(grad)
    info = torch.finfo(dtype)
    bound = (
        0.5 * info.eps * exact.abs() + 0.5 * info.smallest_normal * info.eps + noise * torch.maximum(scale, exact.abs())
    )
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


def _magnitude(tensor: Tensor) -> Tensor:
    return tensor.cpu().double().nan_to_num(1, 1, 1).abs()


def _run_interpreted(op: Any, tensors: list[Tensor]) -> Any:
    with results_in_margins():
        if isinstance(op, partial):
            return run_device_kernel(op.func, tensors, **op.keywords)
        return run_device_kernel(op, tensors)


if __name__ == "__main__":
    print_complaints(CASES, lambda case: complaint(case, _run_interpreted))
