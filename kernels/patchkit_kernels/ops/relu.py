"""ReLU, and its square; gated, ReGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202) and the gated square.

The square: So et al. 2021, Primer (https://arxiv.org/abs/2109.08668). At the kink both derivatives are 0, as in torch,
and NaN stays NaN, which a maximum with 0 does not promise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def relu(x: tl.tensor) -> tl.tensor:
    """``max(x, 0)`` of an fp32 block."""
    return tl.where(x <= 0, 0.0, x)


@jit
def relu_and_gradient(x: tl.tensor, grad: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``relu(x)``, and ``grad`` where ``x > 0``, else 0."""
    return tl.where(x <= 0, 0.0, x), tl.where(x <= 0, 0.0, grad)


@jit
def relu2(x: tl.tensor) -> tl.tensor:
    """``max(x, 0)^2`` of an fp32 block."""
    return tl.where(x <= 0, 0.0, x * x)


@jit
def relu2_and_gradient(x: tl.tensor, grad: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``relu(x)^2``, and ``grad * 2 x`` where ``x > 0``, else 0."""
    return tl.where(x <= 0, 0.0, x * x), tl.where(x <= 0, 0.0, grad * (2 * x))


def relu2_function(x: Tensor) -> Tensor:
    """``relu(x)^2`` of ``[..., n]`` in torch, as transformers' ``ReLUSquaredActivation`` computes it."""
    return torch.square(F.relu(x))


def relu_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` where ``x > 0``, else 0, written over ``grad``; both ``[..., n]`` of one dtype."""
    torch.ops.aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)
    return grad


def relu2_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """``grad * 2 x`` where ``x > 0``, else 0, written over ``grad``; both ``[..., n]`` of one dtype."""
    return relu_gradient_(grad.mul_(F.relu(x).mul_(2)), x)


RELU = ActivationFunction("relu", "reglu", relu, relu_and_gradient, F.relu, relu_gradient_)
RELU2 = ActivationFunction("relu2", "relu2_glu", relu2, relu2_and_gradient, relu2_function, relu2_gradient_)
