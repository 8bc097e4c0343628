"""The activations' ops, plain and gated, on a real device: the cases of the interpreter, and what only a device can show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from activation_cases import ACTIVATIONS, CASES, Activation, Case, as_tuple, complaint, truth
from devices import DEVICE, MODULE, needs_device
from strided_tensors import uniform
from torch import Tensor

pytestmark = needs_device
pytest.importorskip("triton", reason="the kernels are Triton's")


def _call_op(op: Any, tensors: list[Tensor]) -> Any:
    return op(*tensors)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel(case: Case) -> None:
    assert complaint(case, _call_op, DEVICE) is None


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_fp64_runs_the_reference(activation: Activation) -> None:
    count = len(activation.kernel.inputs)
    tensors = [uniform(5, 9, seed=seed).to(DEVICE) for seed in range(1 + count)]
    for op, given in ((activation.op, tensors[1:]), (activation.backward_op, tensors)):
        for result, exact in zip(as_tuple(op(*given)), truth(activation, given), strict=True):
            torch.testing.assert_close(result.cpu(), exact, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_same_bits_every_time(activation: Activation) -> None:
    count = len(activation.kernel.inputs)
    grad, *inputs = [uniform(100, 1000, seed=seed).to(DEVICE, torch.bfloat16) for seed in range(1 + count)]
    assert torch.equal(activation.forward(*inputs), activation.forward(*inputs))
    first, second = activation.backward(grad, *inputs), activation.backward(grad, *inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_compiles_without_graph_break(activation: Activation) -> None:
    count = len(activation.kernel.inputs)
    inputs = [uniform(8, 40, seed=seed).to(DEVICE, torch.bfloat16).requires_grad_() for seed in range(count)]

    def function(first: Tensor, *others: Tensor) -> Tensor:
        result: Tensor = activation.kernel.forward(first * 2, *others) + 1
        return result

    torch.compile(function, fullgraph=True)(*inputs).sum().backward()
    expected = torch.autograd.grad(function(*inputs).sum(), inputs)
    torch.testing.assert_close([tensor.grad for tensor in inputs], list(expected), rtol=1e-2, atol=1e-2)


def test_device_that_is_not_current() -> None:
    if MODULE.device_count() < 2:
        pytest.skip("needs two devices")
    gate, up = (uniform(5, 9, seed=seed).to(f"{DEVICE}:1", torch.float32) for seed in range(2))
    assert MODULE.current_device() == 0
    result = ACTIVATIONS["swiglu"].forward(gate, up)
    assert result.device == gate.device
    torch.testing.assert_close(result.cpu(), truth(ACTIVATIONS["swiglu"], [gate, up])[0].float())


@pytest.mark.parametrize("layout", ["contiguous", "halves"])
def test_more_than_2_to_the_31_elements(layout: str) -> None:
    if MODULE.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    rows, columns = 2**18 + 1, 2**13
    fused = torch.ones(rows, 2 * columns, dtype=torch.bfloat16, device=DEVICE)
    gate, up = fused.chunk(2, -1) if layout == "halves" else (fused.view(2, rows, columns)[i] for i in range(2))
    for value, (row, column) in enumerate([(-1, -1), (-1, 0), (rows // 2, 77)], start=2):
        gate[row, column] = value
    result = ACTIVATIONS["swiglu"].forward(gate, up)
    for row in (-1, rows // 2, 0):
        torch.testing.assert_close(result[row], torch.nn.functional.silu(gate[row]), rtol=1e-2, atol=1e-2)
