"""The public functions of each gated activation hand their arguments on in order: every result against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from patchkit_kernels.ops import geglu, swiglu

FORMULAS = {
    "swiglu": (swiglu, F.silu),
    "geglu_erf": (geglu, F.gelu),
    "geglu_tanh": (geglu, lambda x: F.gelu(x, approximate="tanh")),
}


def tensors():
    torch.manual_seed(0)
    return [torch.randn(3, 5, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("name", FORMULAS)
def test_forward_backward_and_recomputation(name):
    module, activation = FORMULAS[name]
    grad, gate, up = tensors()
    leaves = [gate.clone().requires_grad_(), up.clone().requires_grad_()]
    value = activation(leaves[0]) * leaves[1]
    d_gate, d_up = torch.autograd.grad(value, leaves, grad)
    torch.testing.assert_close(getattr(module, name)(gate, up), value.detach())
    for found, expected in zip(
        getattr(module, f"{name}_backward")(grad.clone(), gate, up), (d_gate, d_up), strict=True
    ):
        torch.testing.assert_close(found, expected)
    own = grad.clone()
    found_up, found_value = getattr(module, f"{name}_backward_recompute")(own, gate, up)
    for found, expected in ((own, d_gate), (found_up, d_up), (found_value, value.detach())):
        torch.testing.assert_close(found, expected)
