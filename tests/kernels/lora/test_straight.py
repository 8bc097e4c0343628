"""The straight-line functions beside the general ones, which are their reference: every structure goes through both."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from projection_cases import make, tensors
from straight_ways import general
from structures import (
    DROPPED,
    LORA,
    STRUCTURES,
    assert_equal,
    cotangents,
    factors_of,
    first_order,
    mlp,
    projections,
    train,
    ungated_mlp,
)
from test_adapter_functions import ADAPTERS, TOTAL, errors_of
from test_mlp import Counted

from patchkit.testing import relative_error
from patchkit_kernels.lora import linear, mlp_function, straight, straight_one
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.projection import Precision

EACH = {"plain": (LORA,), "dropped": (DROPPED,)}
TRAINED = {
    f"{name} {kind}": (lambda make=make, extra=extra: make(extra))
    for kind, extra in EACH.items()
    for name, make in {
        "linear": lambda e: projections(e),
        "qkv": lambda e: projections(e, e, e),
        "mlp": lambda e: mlp(e, e, e),
        "mlp up first": lambda e: mlp(e, e, e, activation="gelu_erf", gate_first=False),
        "mlp joint": lambda e: mlp(e, e, activation="gelu_tanh"),
        "mlp joint up first": lambda e: mlp(e, e, activation="quick_gelu", gate_first=False),
        "ungated mlp": lambda e: ungated_mlp(e, e, activation="relu2"),
    }.items()
}
TRAINED["mlp dropped before down alone"] = lambda: mlp((LORA,), (LORA,), (DROPPED,))
BOTH = {name: make for name, make in STRUCTURES.items() if "embedding" not in name} | TRAINED


@pytest.fixture
def straight_calls(monkeypatch):
    """The straight-line functions that ran."""
    calls = []
    for module, name in (
        (linear, "apply_trained"),
        (linear, "apply_trained_one"),
        (linear, "apply_trained_three"),
        (mlp_function, "apply_trained_mlp"),
        (mlp_function, "apply_trained_gated"),
        (mlp_function, "apply_trained_two"),
    ):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, f=function, n=name: calls.append(n) or f(*args))
    return calls


@pytest.mark.parametrize("low_rank_first", [False, True])
@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("name", BOTH)
def test_both_give_the_same(name, x_grad, low_rank_first, straight_calls, monkeypatch):
    """The same outputs and gradients from the same draws, in both orders of the products of y."""
    for module in (straight, straight_one):
        monkeypatch.setattr(module, "reads_in_epilogue", lambda x: low_rank_first)
    structure = BOTH[name]()
    train(structure, factors_of(structure) | ({"x"} if x_grad else set()))
    found = first_order(structure, structure.fused)
    if name in TRAINED:
        assert len(straight_calls) == 1
    count = len(straight_calls)
    general(monkeypatch)
    expected = first_order(structure, structure.fused)
    assert len(straight_calls) == count
    assert_equal(expected, found, name, tolerance=1e-13)


NOT_TRAINED = {
    "a bias of B": lambda: projections((LORA._replace(bias=True),)),
    "DoRA": lambda: projections((LORA._replace(dora=True),)),
    "two adapters": lambda: projections((LORA, LORA)),
    "none": lambda: projections((LORA,), ()),
    "dropout of one of them": lambda: projections((LORA,), (DROPPED,)),
    "all dropped": lambda: projections((DROPPED._replace(dropout=1.0),)),
    "dropout before down": lambda: mlp((LORA,), (LORA,), (LORA,), dropout=0.3),
}


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_other_structures_take_the_general_way(name, straight_calls):
    structure = NOT_TRAINED[name]()
    train(structure, factors_of(structure) | {"x"})
    structure.fused()
    assert not straight_calls


@pytest.mark.parametrize("changed", ["q W", "q b", "q A0", "q B0"])
def test_what_is_trained_is_looked_up_at_each_call(changed, straight_calls):
    """A weight that is trained from now on, or a factor that is frozen, is seen by the next call."""
    structure = projections((LORA,), (LORA,))
    factors = factors_of(structure)
    train(structure, factors)
    structure.fused()
    assert len(straight_calls) == 1
    train(structure, factors ^ {changed})
    structure.fused()
    assert len(straight_calls) == 1
    train(structure, factors)
    structure.fused()
    assert len(straight_calls) == 2


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_of_some(name, monkeypatch):
    """Of each tensor alone, and where not every output is used: None as the general functions give it."""
    structure = TRAINED[name]()
    train(structure, set(structure.tensors) & (factors_of(structure) | {"x"}))
    chosen = [tensor for tensor in structure.tensors.values() if tensor.requires_grad]
    found = {}
    for way in ("straight", "general"):
        if way == "general":
            general(monkeypatch)
        outputs = structure.fused()
        ways = [(outputs[-1:], chosen), *[(outputs, [tensor]) for tensor in chosen]]
        found[way] = {
            f"{index} {inner}": grad
            for index, (ys, wanted) in enumerate(ways)
            for inner, grad in enumerate(
                torch.autograd.grad(ys, wanted, cotangents(ys), retain_graph=True, allow_unused=True)
            )
        }
    assert_equal(found["general"], found["straight"], name, tolerance=1e-13)


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_in_a_dispatch_mode(name):
    """Which sees the ops, and no result of an operation change: checkpointing may hold it."""
    structure = TRAINED[name]()
    train(structure, factors_of(structure) | {"x"})
    expected = first_order(structure, structure.fused)
    with Counted() as counted:
        found = first_order(structure, structure.fused)
    assert_equal(expected, found, name, tolerance=1e-13)
    with Counted() as forward:
        structure.fused()
    assert not {op for op in forward.ops if op.endswith("_") and op != "bernoulli_"}
    assert ("mlp" in name) == any(op.endswith(("_backward_recompute", "_backward_packed")) for op in counted.ops)


MIXED = {
    "float32 adapters": (torch.bfloat16, torch.float32),
    "float32 under autocast": (torch.float32, torch.float32),
    "autocast": (torch.bfloat16, torch.float32),
}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("mixed", MIXED)
def test_the_same_in_a_dispatch_mode_in_mixed_precision(mixed, dropout):
    """Bit by bit without dropout, in the same dtypes with it."""
    base, lora = MIXED[mixed]
    inner = torch.bfloat16 if "autocast" in mixed else None
    precision = Precision(inner or base, inner or lora, inner or base, lora)
    extras = (LORA._replace(dropout=dropout),)
    made = [make(8, 8, 2, dtype=base, lora_dtype=lora, seed=i, extras=extras) for i in range(3)]
    x, results = torch.randn(4, 8, dtype=base, requires_grad=True), []
    for mode in (nullcontext, Counted):
        torch.manual_seed(0)
        with mode():
            y = lora_gated_mlp(x, made[:2], made[2], "silu", precision)
            results.append([y, *torch.autograd.grad(y, [x, *tensors(made)], torch.ones_like(y))])
    for alone, seen in zip(*results, strict=True):
        assert alone.dtype == seen.dtype
        assert torch.equal(alone, seen) or (dropout and relative_error(seen, alone) < 0.02)


@pytest.mark.parametrize("adapters", ["lora", "dropout"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_rank_first_rounds_no_worse_than_upstream(adapters, dtype, monkeypatch):
    monkeypatch.setattr(straight_one, "reads_in_epilogue", lambda x: True)

    def run(*args):
        torch.manual_seed(5)
        return linear.lora_linear(*args)

    assert not errors_of(run, ADAPTERS[adapters], dtype, dtype).failures(totals=[TOTAL])


def test_a_frozen_model_keeps_nothing(straight_calls):
    """Without gradients: the same numbers, and no graph."""
    structure = TRAINED["qkv plain"]()
    train(structure, factors_of(structure) | {"x"})
    expected = structure.fused()
    with torch.no_grad():
        found = structure.fused()
    assert len(straight_calls) == 2
    assert all(y.grad_fn is None and torch.equal(y, wanted) for y, wanted in zip(found, expected, strict=True))
