"""dt and dB in one pass over dy: the same gradients as in two products, where it is chosen and nowhere else."""

from __future__ import annotations

import pytest
import torch
from structures import (
    DROPPED,
    LORA,
    assert_equal,
    assert_own_memory,
    factors_of,
    first_order,
    mlp,
    projections,
    train,
    ungated_mlp,
)
from test_adapter_functions import TOTAL
from test_bf16x3 import BLOCKS, errors_of

from patchkit_kernels.lora import straight_one_pass
from patchkit_kernels.lora.choices import choosing

STRUCTURES = {
    "linear": (1, lambda extra: projections((extra,))),
    "qkv": (3, lambda extra: projections((extra,), (extra,), (extra,))),
    "mlp": (3, lambda extra: mlp((extra,), (extra,), (extra,))),
    "mlp joint": (2, lambda extra: mlp((extra,), (extra,))),
    "ungated mlp": (2, lambda extra: ungated_mlp((extra,), (extra,), activation="gelu_erf")),
}


@pytest.fixture
def passes(monkeypatch):
    """The ranks of the adapters whose products were made in one pass."""
    ranks, function = [], straight_one_pass.low_rank_backward
    monkeypatch.setattr(
        straight_one_pass, "low_rank_backward", lambda *args: ranks.append(args[1].shape[1]) or function(*args)
    )
    return ranks


@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_same_gradients(name, x_grad, passes):
    count, make_one = STRUCTURES[name]
    structure = make_one(LORA)
    train(structure, factors_of(structure) | ({"x"} if x_grad else set()))
    expected = first_order(structure, structure.fused)
    assert not passes
    with choosing(emulated=True, one_pass_rank=2):
        found = first_order(structure, structure.fused)
    assert passes == [2] * count
    assert_equal(expected, found, name, tolerance=1e-13)


@pytest.mark.parametrize("block", BLOCKS)
def test_no_worse_than_upstream(block, passes):
    """With bfloat16 rows and float32 adapters."""
    with choosing(emulated=True, one_pass_rank=32):
        assert not errors_of(block, (LORA,)).failures(totals=[TOTAL])
    assert passes


OTHERS = {
    "dropout": (DROPPED, {"emulated": True, "one_pass_rank": 2}),
    "a greater rank": (LORA, {"emulated": True, "one_pass_rank": 1}),
    "not chosen": (LORA, {"emulated": True}),
    "a CPU": (LORA, {"one_pass_rank": 2}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nowhere_else(name, passes):
    extra, choices = OTHERS[name]
    structure = projections((extra,))
    train(structure, factors_of(structure) | {"x"})
    with choosing(**choices):
        first_order(structure, structure.fused)
    assert not passes


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_own_their_memory(base, passes):
    """All of it, but for the A's of one input."""
    structure = projections((LORA,), (LORA,), dtype=base)
    train(structure, factors_of(structure))
    with choosing(emulated=True, one_pass_rank=2):
        found = first_order(structure, structure.fused)
    assert passes == [2, 2]
    grads = {name: grad for name, grad in found.items() if name in factors_of(structure)}
    assert [grad.dtype for grad in grads.values()] == [base] * 4
    assert_own_memory(grads)
