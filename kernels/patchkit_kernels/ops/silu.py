"""SiLU, ``x * sigmoid(x)``; gated it is SwiGLU, the activation of LLaMA and its kin.

Elfwing et al. 2017 (https://arxiv.org/abs/1702.03118); gated: Shazeer 2020 (https://arxiv.org/abs/2002.05202).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def silu(x: tl.tensor) -> tl.tensor:
    """``x * sigmoid(x)`` of an fp32 block."""
    return x * tl.sigmoid(x)


@jit
def silu_and_gradient(x: tl.tensor, grad: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``silu(x)``, and ``grad`` times its derivative ``s + silu(x) * (1 - s)``, with ``s = sigmoid(x)``."""
    sigmoid = tl.sigmoid(x)
    value = x * sigmoid
    # 1 - sigmoid would lose its digits where sigmoid nears 1.
    return value, grad * (sigmoid + value * tl.sigmoid(-x))


def silu_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """``grad * silu'(x)``, written over ``grad``; both ``[..., n]`` of one dtype."""
    torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=grad)
    return grad


SILU = ActivationFunction("silu", "swiglu", silu, silu_and_gradient, F.silu, silu_gradient_)
