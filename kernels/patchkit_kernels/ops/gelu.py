"""GELU, exact (erf) or in its tanh approximation; gated they are two forms of GEGLU.

Hendrycks and Gimpel 2016 (https://arxiv.org/abs/1606.08415); gated: Shazeer 2020 (https://arxiv.org/abs/2002.05202).
The two forms differ by up to 5e-4, so they are two activations, and a model that was trained with one (Gemma: tanh)
never runs the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def gelu_erf(x: tl.tensor) -> tl.tensor:
    """``x * Phi(x)`` of an fp32 block, with the normal distribution's ``Phi(x) = (1 + erf(x / sqrt(2))) / 2``."""
    return x * (0.5 * (1 + tl.erf(x * 0.7071067811865476)))


@jit
def gelu_erf_and_gradient(x: tl.tensor, grad: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``x * Phi(x)``, and ``grad`` times its derivative ``Phi(x) + x * exp(-x^2 / 2) / sqrt(2 pi)``."""
    cumulative = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return x * cumulative, grad * (cumulative + x * density)


@jit
def gelu_tanh(x: tl.tensor) -> tl.tensor:
    """``x * (1 + tanh(u)) / 2`` of an fp32 block, with ``u = sqrt(2 / pi) * (x + 0.044715 x^3)``.

    Written ``x * sigmoid(2 u)``, which is the same and needs no tanh: every target has exp, and nothing overflows.
    """
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 2 sqrt(2 / pi)


@jit
def gelu_tanh_and_gradient(x: tl.tensor, grad: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``gelu_tanh(x)``, and ``grad`` times its derivative ``s + x * s * (1 - s) * 2 u'``, ``s = sigmoid(2 u)``."""
    square = x * x
    doubled_u = 1.5957691216057308 * (x + 0.044715 * square * x)
    sigmoid = tl.sigmoid(doubled_u)
    value = x * sigmoid
    complement = tl.sigmoid(-doubled_u)  # 1 - sigmoid would lose its digits where sigmoid nears 1
    return value, grad * (sigmoid + value * complement * (1.5957691216057308 * (1 + 0.134145 * square)))


def gelu_tanh_function(x: Tensor) -> Tensor:
    """GELU's tanh approximation of ``[..., n]`` in torch."""
    return F.gelu(x, approximate="tanh")


def gelu_erf_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """``grad * gelu'(x)`` of exact GELU, written over ``grad``; both ``[..., n]`` of one dtype."""
    torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)
    return grad


def gelu_tanh_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """``grad * gelu'(x)`` of tanh GELU, written over ``grad``; both ``[..., n]`` of one dtype."""
    torch.ops.aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=grad)
    return grad


GELU_ERF = ActivationFunction("gelu_erf", "geglu_erf", gelu_erf, gelu_erf_and_gradient, F.gelu, gelu_erf_gradient_)
GELU_TANH = ActivationFunction(
    "gelu_tanh", "geglu_tanh", gelu_tanh, gelu_tanh_and_gradient, gelu_tanh_function, gelu_tanh_gradient_
)
