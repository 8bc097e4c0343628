"""SwiGLU: ``silu(gate) * up``, with ``silu(x) = x * sigmoid(x)``.

Shazeer 2020, GLU Variants Improve Transformer (https://arxiv.org/abs/2002.05202); the activation of LLaMA and its kin.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.ops.gated_activation import GatedActivation, register
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def silu(x: tl.tensor) -> tl.tensor:
    """``x * sigmoid(x)`` of an fp32 block."""
    return x * tl.sigmoid(x)


@jit
def silu_and_slope(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``silu(x)`` and its derivative ``s + silu(x) * (1 - s)``, with ``s = sigmoid(x)``, of an fp32 block."""
    sigmoid = tl.sigmoid(x)
    value = x * sigmoid
    return value, sigmoid + value * tl.sigmoid(-x)  # 1 - sigmoid would lose its digits where sigmoid nears 1


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` in torch; ``gate``, ``up`` and the result ``[..., n]`` of one dtype."""
    return F.silu(gate).mul_(up)  # in place on silu's own output: one buffer less


def swiglu_backward_reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad * up * silu'(gate), grad * silu(gate))`` in torch; every tensor ``[..., n]`` of one dtype.

    The same operations in the same order as autograd of ``F.silu(gate) * up``, so the same bits.
    """
    grad_gate = grad * up
    torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
    return grad_gate, F.silu(gate).mul_(grad)


def swiglu_backward_recompute_reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad * silu(gate), silu(gate) * up)`` in torch; ``grad * up * silu'(gate)`` is written over ``grad``."""
    value = F.silu(gate)
    hidden = value * up
    grad_up = value.mul_(grad)
    grad.mul_(up)
    torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=grad)
    return grad_up, hidden


SWIGLU = GatedActivation(
    name="swiglu",
    value=silu,
    value_and_slope=silu_and_slope,
    reference=swiglu_reference,
    backward_reference=swiglu_backward_reference,
    backward_recompute_reference=swiglu_backward_recompute_reference,
)
_forward, _backward, _backward_recompute = register(SWIGLU)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, differentiable: the op ``patchkit::swiglu``.

    Args:
        gate: ``[..., n]``, floating point. Rows may lie apart, as halves of a fused ``gate_up`` output do.
        up: like ``gate`` in shape, dtype and device.

    Returns:
        Contiguous, like ``gate`` in shape, dtype and device. In bf16 and fp16 the Triton kernel rounds once.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    return _forward(gate, up)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad_gate, grad_up)`` of :func:`swiglu` for its output's gradient: the op ``patchkit::swiglu_backward``.

    Args:
        grad: gradient of the output, ``[..., n]``.
        gate: as given to :func:`swiglu`.
        up: as given to :func:`swiglu`.

    Returns:
        ``grad * up * silu'(gate)`` and ``grad * silu(gate)``, contiguous, like ``gate`` in shape and dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    return _backward(grad, gate, up)


def swiglu_backward_recompute(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`swiglu_backward` in place, with the forward value: the op ``patchkit::swiglu_backward_recompute``.

    Args:
        grad: gradient of the output, ``[..., n]``, contiguous. It is overwritten with ``grad * up * silu'(gate)``.
        gate: as given to :func:`swiglu`.
        up: as given to :func:`swiglu`.

    Returns:
        ``grad * silu(gate)`` and ``silu(gate) * up``, contiguous, like ``gate`` in shape and dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ, or ``grad`` is not contiguous.
    """
    return _backward_recompute(grad, gate, up)
