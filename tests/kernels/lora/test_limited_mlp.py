"""The gated MLP whose gate and up have a limit: against the same formula in ordinary operations, and at the limit itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from projection_cases import ACTS, FP64, assert_same, make, plain, seeded, tensors
from structures import BIASED, DORA, DROPPED, LORA
from torch import Tensor

from patchkit.testing.measure import saved_bytes
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.hidden_state import Limited, functions_of, limited

LIMIT = 0.4


def plain_limited(x, inputs, down, activation, gate_first, dropout=0.0, limit=LIMIT):
    parts = [plain(x, p) for p in inputs]
    first, second = parts if len(parts) == 2 else parts[0].chunk(2, -1)
    gate, up = (first, second) if gate_first else (second, first)
    hidden = ACTS[activation](gate.clamp(max=limit)) * up.clamp(min=-limit, max=limit)
    return plain(F.dropout(hidden, dropout), down)


def parts(joint, extras, **options):
    outputs = 14 if joint else 7
    inputs = [make(5, outputs, 2, extras=extras, seed=seed, **options) for seed in ((1,) if joint else (1, 2))]
    return inputs, make(7, 5, 2, extras=extras, seed=3, **options)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("extras", [(), (LORA,), (DROPPED, BIASED), (DORA,)], ids=str)
@pytest.mark.parametrize("x_grad", [True, False])
def test_equal(joint, gate_first, extras, dropout, x_grad):
    inputs, down = parts(joint, extras, bias=gate_first, base_grad=not extras)
    x = (2 * torch.randn(6, 5, dtype=torch.float64)).requires_grad_(x_grad)
    for activation in ACTS:
        expected = seeded(lambda a=activation: plain_limited(x, inputs, down, a, gate_first, dropout))()
        found = seeded(
            lambda a=activation: lora_gated_mlp(
                x, inputs, down, a, FP64, gate_first=gate_first, dropout=dropout, limit=LIMIT
            )
        )()
        assert_same(expected, found, [*([x] if x_grad else []), *tensors([*inputs, down])])
        without = seeded(
            lambda a=activation: lora_gated_mlp(x, inputs, down, a, FP64, gate_first=gate_first, dropout=dropout)
        )()
        assert not torch.allclose(found, without)  # the limit is reached


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gradcheck(activation):
    inputs, down = parts(False, (LORA,))
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def function(*_):
        return lora_gated_mlp(x, inputs, down, activation, FP64, limit=LIMIT)

    variables = [x, *tensors([*inputs, down])]
    assert torch.autograd.gradcheck(function, variables, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, variables, fast_mode=True)


EDGES = [-2.5, -2.0, -1.0, 0.0, 1.0, 2.0, 2.5, float("inf"), float("-inf"), float("nan")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTS)
def test_what_flows_at_the_limit_and_beyond(activation, dtype):
    """To the bit what autograd has: a gradient at the limit, none beyond it, where an infinite one is none either."""
    gate, up = (
        t.reshape(-1).to(dtype) for t in torch.meshgrid(torch.tensor(EDGES), torch.tensor(EDGES), indexing="ij")
    )
    grad = torch.linspace(-2, 2, gate.numel()).to(dtype)
    grad[7] = float("inf")
    rows = [t.reshape(10, 10) for t in (gate, up, grad)]
    functions = limited(functions_of(activation, True), 2.0)
    assert isinstance(functions, Limited)
    leaves = [t.clone().requires_grad_() for t in rows[:2]]
    clamped = leaves[0].clamp(max=2.0), leaves[1].clamp(min=-2.0, max=2.0)
    hidden = functions_of(activation, True).reference(*clamped)
    # Of what the activation's own op gives, only what passes the clamp.
    inner = functions_of(activation, True).backward(rows[2], *(t.detach() for t in clamped))
    expected = torch.autograd.grad(clamped, leaves, inner)
    same(functions.forward(*rows[:2]), hidden)
    for found, wanted in zip(functions.backward(rows[2], *rows[:2]), expected, strict=True):
        same(found, wanted)
    over = rows[2].clone()
    grad_up, again = functions.backward_recompute(over, *rows[:2])
    same(over, expected[0])
    same(grad_up, expected[1])
    same(again, hidden)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=0, equal_nan=True)


def test_no_more_is_kept_than_without_a_limit():
    inputs, down = parts(False, (LORA,))
    x = torch.randn(64, 5, dtype=torch.float64, requires_grad=True)
    kept = [
        saved_bytes(lambda limit=limit: lora_gated_mlp(x, inputs, down, "silu", FP64, limit=limit).sum())
        for limit in (None, LIMIT)
    ]
    plainly = saved_bytes(lambda: plain_limited(x, inputs, down, "silu", True).sum())
    assert kept[1] <= kept[0] < 0.6 * plainly  # without a limit t of each projection is kept, too
