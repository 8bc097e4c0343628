"""What the straight-line functions ask torch for, and what not: on a small model each needless call is a visible part."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from projection_cases import make, tensors
from structures import DROPPED, LORA, cotangents, factors_of, mlp, projections, train, ungated_mlp
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.lora import straight, straight_one, straight_saving
from patchkit_kernels.lora.linear import lora_projections
from patchkit_kernels.lora.projection import Adapter, Precision
from patchkit_kernels.lora.shapes import as_rows
from patchkit_kernels.lora.terms import add_lora_term


class Asked(TorchFunctionMode):
    """Counts the functions of torch by their names."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names[(resolve_name(function) or "").removeprefix("torch.")] += 1
        return function(*args, **(kwargs or {}))


def asked(function):
    with Asked() as mode:
        result = function()
    return mode.names, result


def backward_of(outputs):
    """What the backward of the function that made these asks, which autograd would hide; and what it returns."""
    grads = cotangents(outputs)
    with torch.no_grad():
        return asked(lambda: outputs[0].grad_fn.apply(*grads))


STRUCTURES = {
    "linear": lambda e: projections(e),
    "qkv": lambda e: projections(e, e, e),
    "mlp": lambda e: mlp(e, e, e),
    "mlp joint": lambda e: mlp(e, e),
    "ungated mlp": lambda e: ungated_mlp(e, e, activation="relu"),
}
CONVERSIONS = {
    *("Tensor.to", "Tensor.type", "Tensor.float", "Tensor.bfloat16", "Tensor.half", "Tensor.double"),
    *("Tensor.clone", "Tensor.contiguous"),
}
OUT_OF_PLACE = {"Tensor.add", "Tensor.addmm", "Tensor.mul"}


@pytest.mark.parametrize("low_rank_first", [False, True])
@pytest.mark.parametrize("extra", [LORA, DROPPED], ids=["plain", "dropped"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_in_one_dtype_nothing_is_converted_and_sums_are_written_over(name, extra, low_rank_first, monkeypatch):
    for module in (straight, straight_one):
        monkeypatch.setattr(module, "reads_in_epilogue", lambda x: low_rank_first)
    structure = STRUCTURES[name]((extra,))
    train(structure, factors_of(structure) | {"x"})
    backward_of(structure.fused())  # which makes the tables of dropout
    forward, outputs = asked(structure.fused)
    backward, _ = backward_of(outputs)
    assert not (CONVERSIONS | OUT_OF_PLACE) & forward.keys()
    assert not CONVERSIONS & backward.keys()


@pytest.mark.parametrize(("stacked", "again"), [(2**13, 0), (0, 1)])
@pytest.mark.parametrize(("count", "joined"), [(1, 0), (2, 1), (3, 1)])
def test_the_as_of_one_projection_are_no_copy(count, joined, stacked, again, monkeypatch):
    """Those of several are stacked once, or again in backward if they are many elements; their gradients no copies."""
    monkeypatch.setattr(straight_saving, "FEW_STACKED", stacked)
    structure = projections(*[(LORA,)] * count)
    train(structure, factors_of(structure) | {"x"})
    forward, outputs = asked(structure.fused)
    assert forward["cat"] == joined
    backward, _ = backward_of(outputs)
    assert backward["cat"] == joined * again
    assert backward["split_with_sizes_copy"] == 0


DTYPES = {
    # base, adapters, and the dtypes of products with W, with A and B, of outputs, and of the input of dropout
    "narrow base": (torch.bfloat16, torch.float32, Precision(torch.bfloat16, torch.float32, torch.bfloat16, torch.float32)),
    "autocast": (torch.float32, torch.float32, Precision(*[torch.bfloat16] * 3, torch.float32)),
    "fast": (torch.bfloat16, torch.float32, Precision(*[torch.bfloat16] * 3, torch.float32)),
}  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", DTYPES)
def test_gradients_have_the_dtypes_of_what_they_are_of(name, dropout):
    """Before autograd sees them, which would convert them in silence, after they were rounded to another dtype."""
    base, lora, precision = DTYPES[name]
    made = [
        make(8, 6, 2, dtype=base, lora_dtype=lora, seed=i, extras=(LORA._replace(dropout=dropout),)) for i in (0, 1)
    ]
    x = torch.randn(3, 8, dtype=base, requires_grad=True)
    outputs = lora_projections(x, made, precision)
    assert {y.dtype for y in outputs} == {precision.output}
    _, returned = backward_of(outputs)
    variables = [x, *tensors(made)]
    found = [grad for grad in returned if grad is not None]
    expected = sorted(str(variable.dtype) for variable in variables if variable.requires_grad)
    assert sorted(str(grad.dtype) for grad in found) == expected


def test_rows_that_are_rows_are_handed_on():
    rows = torch.ones(3, 4)
    assert as_rows(rows) is rows
    assert as_rows(rows[0]).shape == (1, 4)
    assert as_rows(rows[None]).shape == (3, 4)


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_term_is_written_into_the_sum_unless_a_mode_may_hold_it(dtype, bias):
    precision = Precision(*[torch.float64] * 4)
    adapter = Adapter(torch.ones(2, 4), torch.ones(5, 2).double(), 0.5, torch.ones(5).double() if bias else None)
    t, sums, results = torch.ones(3, 2, dtype=torch.float64), [torch.zeros(3, 5, dtype=dtype) for _ in range(2)], []
    results.append(add_lora_term(sums[0], t, adapter, precision))
    with Seen():
        results.append(add_lora_term(sums[1], t, adapter, precision))
    assert results[0] is sums[0] or results[0].data_ptr() == sums[0].data_ptr()
    assert not sums[1].any()
    for result in results:
        assert torch.equal(result.double(), torch.full((3, 5), 1.5 if bias else 1.0, dtype=torch.float64))
