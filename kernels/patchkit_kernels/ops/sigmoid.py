"""The logistic sigmoid; gated it is the gated linear unit, Dauphin et al. 2016 (https://arxiv.org/abs/1612.08083)."""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """``1 / (1 + exp(-x))`` of an fp32 block."""
    return tl.sigmoid(x)


@jit
def sigmoid_and_gradient(x: tl.tensor, grad: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``s = sigmoid(x)``, and ``grad`` times its derivative ``s * (1 - s)``."""
    value = tl.sigmoid(x)
    return value, grad * (value * tl.sigmoid(-x))  # 1 - value would lose its digits where value nears 1


def sigmoid_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """``grad * sigmoid'(x)``, written over ``grad``; both ``[..., n]`` of one dtype."""
    torch.ops.aten.sigmoid_backward.grad_input(grad, torch.sigmoid(x), grad_input=grad)
    return grad


SIGMOID = ActivationFunction("sigmoid", "glu", sigmoid, sigmoid_and_gradient, torch.sigmoid, sigmoid_gradient_)
