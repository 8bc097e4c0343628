"""Quick GELU, ``x * sigmoid(1.702 x)``, the activation of CLIP: an approximation of GELU that differs by up to 2e-2.

Hendrycks and Gimpel 2016, section 2 (https://arxiv.org/abs/1606.08415).
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def quick_gelu(x: tl.tensor) -> tl.tensor:
    """``x * sigmoid(1.702 x)`` of an fp32 block."""
    return x * tl.sigmoid(1.702 * x)


@jit
def quick_gelu_and_gradient(x: tl.tensor, grad: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``quick_gelu(x)``, and ``grad`` times its derivative ``s + 1.702 x s (1 - s)``, with ``s = sigmoid(1.702 x)``.

    In two parts, as autograd differentiates upstream's product: so an infinite ``grad`` gives what it gives there.
    """
    sigmoid = tl.sigmoid(1.702 * x)
    # 1 - sigmoid would lose its digits where sigmoid nears 1.
    inner = 1.702 * (sigmoid * tl.sigmoid(-1.702 * x))
    return x * sigmoid, grad * sigmoid + grad * x * inner


def quick_gelu_function(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)`` of ``[..., n]`` in torch, as transformers' ``QuickGELUActivation`` computes it."""
    return x * torch.sigmoid(1.702 * x)


def quick_gelu_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """``grad * quick_gelu'(x)``, written over ``grad``; both ``[..., n]`` of one dtype."""
    sigmoid = torch.sigmoid(1.702 * x)
    inner = grad * x
    torch.ops.aten.sigmoid_backward.grad_input(inner, sigmoid, grad_input=inner)
    return grad.mul_(sigmoid).add_(inner.mul_(1.702))


QUICK_GELU = ActivationFunction(
    "quick_gelu", "quick_geglu", quick_gelu, quick_gelu_and_gradient, quick_gelu_function, quick_gelu_gradient_
)
