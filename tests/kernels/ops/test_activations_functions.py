"""The functions by name of what a fused MLP computes: arguments in their order, every result against its formula."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from patchkit_kernels.ops.activations import GATED, PLAIN, Activation

FORMULAS = {
    "silu": F.silu,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x) ** 2,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid": torch.sigmoid,
}
FORMS = {
    "gated": (GATED, 2, lambda act, gate, up: act(gate) * up),
    "plain": (PLAIN, 1, lambda act, x: act(x)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_name_has_its_functions(form):
    assert set(FORMS[form][0]) == set(get_args(Activation)) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("form", FORMS)
def test_forward_backward_and_recomputation(form, name):
    table, count, formula = FORMS[form]
    functions = table[name]
    torch.manual_seed(0)
    grad, *inputs = [torch.randn(3, 5, dtype=torch.float64) for _ in range(1 + count)]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = formula(FORMULAS[name], *leaves)
    first, *others = torch.autograd.grad(value, leaves, grad)
    torch.testing.assert_close(functions.forward(*inputs), value.detach())
    torch.testing.assert_close(functions.reference(*inputs), value.detach())
    found = functions.backward(grad.clone(), *inputs)
    for one, expected in zip([found] if count == 1 else found, (first, *others), strict=True):
        torch.testing.assert_close(one, expected)
    own = grad.clone()
    found = functions.backward_recompute(own, *inputs)
    found = (own, *([found] if count == 1 else found))
    for one, expected in zip(found, (first, *others, value.detach()), strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("form", FORMS)
def test_reference_is_differentiable_twice(form, name):
    table, count, _ = FORMS[form]
    torch.manual_seed(1)
    leaves = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    assert torch.autograd.gradcheck(table[name].reference, leaves)
    assert torch.autograd.gradgradcheck(table[name].reference, leaves)


@pytest.mark.parametrize("grad", [1.0, -2.0, float("inf"), float("nan")])
@pytest.mark.parametrize("x", [-1.0, -0.0, 0.0, float("nan")])
@pytest.mark.parametrize("name", ["relu", "relu2"])
def test_kinks_are_torchs(name, x, grad):
    """Where the derivative is 0, an infinite gradient becomes 0; what is NaN stays NaN."""
    tensor = torch.full((3,), x, dtype=torch.float64, requires_grad=True)
    value = FORMULAS[name](tensor)
    (expected,) = torch.autograd.grad(value, tensor, torch.full_like(value, grad))
    torch.testing.assert_close(PLAIN[name].forward(tensor.detach()), value.detach(), equal_nan=True)
    found = PLAIN[name].backward(torch.full_like(value, grad).detach(), tensor.detach())
    torch.testing.assert_close(found, expected, equal_nan=True)
