"""Which tensors of an adapted parameter can be computed with, guard by guard; and what a recomputation makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from patchkit.adapters.peft_parameters import AdaptedParameter, AdaptedParameters, ParameterAdapter
from patchkit.runtime.levels import GLOBAL_HOOK, Input
from patchkit.runtime.parameters import _merge, _misfit
from patchkit.runtime.precision import PRECISIONS
from patchkit.runtime.replay import THEN_CALLED, Watched

F32, BF16 = torch.float32, torch.bfloat16
EXPERTS, ROWS, COLUMNS, RANK = 3, 6, 4, 2


class Subclass(torch.Tensor):
    """A tensor with rules of its own."""


def ones(*shape, dtype=F32, device="cpu"):
    return torch.ones(*shape, dtype=dtype, device=device)


def given(**changed):
    return Input(COLUMNS, F32, torch.device("cpu"), None, "peft", 2, PRECISIONS)._replace(**changed)


def matrix(**changed):
    """``[rows, columns]``: A ``[rank, columns]``, B ``[rows, rank]``."""
    return parameter(ones(ROWS, COLUMNS), ones(RANK, COLUMNS), ones(ROWS, RANK), **changed)


def stack(*, swapped=False, **changed):
    """``[experts, in, out]``, or swapped ``[experts, out, in]``: A ``[experts * rank, in]``, B ``[out, experts * rank]``."""
    inputs, outputs = (COLUMNS, ROWS) if swapped else (ROWS, COLUMNS)
    shapes = ones(EXPERTS * RANK, inputs), ones(outputs, EXPERTS * RANK)
    return parameter(ones(EXPERTS, ROWS, COLUMNS), *shapes, swapped=swapped, **changed)


def parameter(weight, lora_a, lora_b, /, *, swapped=False, **changed):
    tensors = {"weight": weight, "lora_a": lora_a, "lora_b": lora_b} | changed
    adapter = ParameterAdapter(tensors["lora_a"], tensors["lora_b"], 0.5)
    good = ParameterAdapter(lora_a, lora_b, 2.0)
    return AdaptedParameter("w", tensors["weight"], (good, adapter, good), swapped)


UNFIT = "its A and B do not fit it"
SHAPES = {
    "a matrix": (matrix(), None),
    "a stack": (stack(), None),
    "a stack, swapped": (stack(swapped=True), None),
    "a matrix, said to be swapped": (matrix(swapped=True), None),
    "a vector": (matrix(weight=ones(ROWS)), UNFIT),
    "four dimensions": (stack(weight=ones(1, EXPERTS, ROWS, COLUMNS)), UNFIT),
    "a stack that is not swapped, as if it were": (stack(swapped=True)._replace(swapped=False), UNFIT),
    "a stack that is swapped, as if it were not": (stack()._replace(swapped=True), UNFIT),
    "A of other features": (matrix(lora_a=ones(RANK, 3)), UNFIT),
    "B of other features": (matrix(lora_b=ones(5, RANK)), UNFIT),
    "another rank of A": (matrix(lora_a=ones(3, COLUMNS)), UNFIT),
    "A with a dimension more": (matrix(lora_a=ones(RANK, COLUMNS, 1)), UNFIT),
    "B with a dimension more": (matrix(lora_b=ones(ROWS, 1, RANK)), UNFIT),
    "ranks that differ among experts": (stack(lora_a=ones(7, ROWS), lora_b=ones(COLUMNS, 7)), UNFIT),
    "another number of experts": (stack(weight=ones(4, ROWS, COLUMNS)), UNFIT),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    found, reason = SHAPES[name]
    assert _misfit(found, given()) == reason


KINDS = {
    "a subclass": (lambda t: t.as_subclass(Subclass), "one of its tensors is a test_parameters_fit.Subclass"),
    "sparse": (lambda t: t.to_sparse(), "one of its tensors is torch.sparse_coo and torch.float32"),
    "of integers": (lambda t: t.int(), "one of its tensors is torch.strided and torch.int32"),
    "elsewhere": (lambda t: t.to("meta"), "it is on another device than its input"),
    "a parameter": (lambda t: nn.Parameter(t, requires_grad=False), None),
}


@pytest.mark.parametrize("which", ["weight", "lora_a", "lora_b"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, which):
    change, reason = KINDS[kind]
    usual = matrix()
    tensor = usual.weight if which == "weight" else getattr(usual.adapters[1], which)
    assert _misfit(matrix(**{which: change(tensor)}), given()) == reason


@pytest.mark.parametrize("which", ["weight", "lora_a", "lora_b"])
def test_a_trained_weight_is_pefts_and_trained_factors_are_not(which):
    usual = matrix()
    tensor = usual.weight if which == "weight" else getattr(usual.adapters[1], which)
    found = _misfit(matrix(**{which: tensor.clone().requires_grad_()}), given())
    assert found == ("it is trained itself" if which == "weight" else None)


@pytest.mark.parametrize("table", [PRECISIONS, {}], ids=["from the table", "computed"])
@pytest.mark.parametrize(
    ("weight", "factors", "dtype", "autocast", "reason"),
    [
        (BF16, F32, BF16, None, None),  # PEFT casts A and B to the parameter's dtype
        (F32, BF16, F32, None, None),
        (BF16, BF16, F32, None, "its weight is torch.bfloat16, its input torch.float32"),
        (BF16, F32, F32, BF16, None),
        (torch.float64, F32, F32, BF16, "autocast to torch.bfloat16 over torch.float64 weights and torch.float64 adapters"),
    ],
)  # fmt: skip
def test_dtypes(weight, factors, dtype, autocast, reason, table):
    found = parameter(
        ones(ROWS, COLUMNS, dtype=weight), ones(RANK, COLUMNS, dtype=factors), ones(ROWS, RANK, dtype=factors)
    )
    assert _misfit(found, given(dtype=dtype, autocast=autocast, table=table)) == reason


READ = AdaptedParameters(nn.Identity(), (matrix(),), ())
NOW = AdaptedParameters(nn.Identity(), (stack(),), ())


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        (None, NOW, THEN_CALLED),
        ("it is odd", NOW, THEN_CALLED),
        (None, GLOBAL_HOOK, THEN_CALLED),
        (READ, NOW, NOW),
        (READ, "it is odd", "it is odd"),
        (READ, GLOBAL_HOOK, Watched(READ)),
        (READ, "w: a forward hook is registered on it", Watched(READ)),
    ],
    ids=["not run then", "called then", "not run then, a hook now", "both times", "odd now", "a global hook", "a hook"],
)
def test_a_recomputation(then, now, expected):
    found = _merge(then, now)
    assert found is expected or (type(found), found) == (type(expected), expected)
