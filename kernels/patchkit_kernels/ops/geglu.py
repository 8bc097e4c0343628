"""GEGLU: ``gelu(gate) * up``, with GELU exact (erf) or in its tanh approximation.

GELU: Hendrycks and Gimpel 2016 (https://arxiv.org/abs/1606.08415); gated: Shazeer 2020
(https://arxiv.org/abs/2002.05202). The two forms differ by up to 5e-4, so they are two ops, and a model that was
trained with one (Gemma: tanh) never runs the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.ops.gated_activation import GatedActivation, register
from patchkit_kernels.ops.triton_support import jit, tl


@jit
def gelu_erf(x: tl.tensor) -> tl.tensor:
    """``x * Phi(x)`` of an fp32 block, with the normal distribution's ``Phi(x) = (1 + erf(x / sqrt(2))) / 2``."""
    return x * (0.5 * (1 + tl.erf(x * 0.7071067811865476)))


@jit
def gelu_erf_and_slope(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``x * Phi(x)`` and its derivative ``Phi(x) + x * exp(-x^2 / 2) / sqrt(2 pi)`` of an fp32 block."""
    cumulative = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return x * cumulative, cumulative + x * density


@jit
def gelu_tanh(x: tl.tensor) -> tl.tensor:
    """``x * (1 + tanh(u)) / 2`` of an fp32 block, with ``u = sqrt(2 / pi) * (x + 0.044715 x^3)``.

    Written ``x * sigmoid(2 u)``, which is the same and needs no tanh: every target has exp, and nothing overflows.
    """
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 2 sqrt(2 / pi)


@jit
def gelu_tanh_and_slope(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """``gelu_tanh(x)`` and its derivative ``s + x * s * (1 - s) * 2 u'``, ``s = sigmoid(2 u)``, of an fp32 block."""
    square = x * x
    doubled_u = 1.5957691216057308 * (x + 0.044715 * square * x)
    sigmoid = tl.sigmoid(doubled_u)
    value = x * sigmoid
    complement = tl.sigmoid(-doubled_u)  # 1 - sigmoid would lose its digits where sigmoid nears 1
    return value, sigmoid + value * complement * (1.5957691216057308 * (1 + 0.134145 * square))


def geglu_erf_reference(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` in torch with exact GELU; ``gate``, ``up`` and the result ``[..., n]`` of one dtype."""
    return F.gelu(gate).mul_(up)  # in place on gelu's own output: one buffer less


def geglu_erf_backward_reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad * up * gelu'(gate), grad * gelu(gate))`` in torch with exact GELU; tensors ``[..., n]`` of one dtype.

    The same operations in the same order as autograd of ``F.gelu(gate) * up``, so the same bits.
    """
    grad_gate = grad * up
    torch.ops.aten.gelu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
    return grad_gate, F.gelu(gate).mul_(grad)


def geglu_tanh_reference(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` in torch with tanh GELU; ``gate``, ``up`` and the result ``[..., n]`` of one dtype."""
    return F.gelu(gate, approximate="tanh").mul_(up)


def geglu_tanh_backward_reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad * up * gelu'(gate), grad * gelu(gate))`` in torch with tanh GELU; tensors ``[..., n]`` of one dtype.

    The same operations in the same order as autograd of ``F.gelu(gate, approximate="tanh") * up``, so the same bits.
    """
    grad_gate = grad * up
    torch.ops.aten.gelu_backward.grad_input(grad_gate, gate, approximate="tanh", grad_input=grad_gate)
    return grad_gate, F.gelu(gate, approximate="tanh").mul_(grad)


def geglu_erf_backward_recompute_reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad * gelu(gate), gelu(gate) * up)`` with exact GELU; ``grad`` becomes ``grad * up * gelu'(gate)``."""
    return _backward_recompute(grad, gate, up, "none")


def geglu_tanh_backward_recompute_reference(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad * gelu(gate), gelu(gate) * up)`` with tanh GELU; ``grad`` becomes ``grad * up * gelu'(gate)``."""
    return _backward_recompute(grad, gate, up, "tanh")


def _backward_recompute(grad: Tensor, gate: Tensor, up: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    value = F.gelu(gate, approximate=approximate)
    hidden = value * up
    grad_up = value.mul_(grad)
    grad.mul_(up)
    torch.ops.aten.gelu_backward.grad_input(grad, gate, approximate=approximate, grad_input=grad)
    return grad_up, hidden


GEGLU_ERF = GatedActivation(
    name="geglu_erf",
    value=gelu_erf,
    value_and_slope=gelu_erf_and_slope,
    reference=geglu_erf_reference,
    backward_reference=geglu_erf_backward_reference,
    backward_recompute_reference=geglu_erf_backward_recompute_reference,
)
GEGLU_TANH = GatedActivation(
    name="geglu_tanh",
    value=gelu_tanh,
    value_and_slope=gelu_tanh_and_slope,
    reference=geglu_tanh_reference,
    backward_reference=geglu_tanh_backward_reference,
    backward_recompute_reference=geglu_tanh_backward_recompute_reference,
)
_erf_forward, _erf_backward, _erf_backward_recompute = register(GEGLU_ERF)
_tanh_forward, _tanh_backward, _tanh_backward_recompute = register(GEGLU_TANH)


def geglu_erf(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` with exact GELU, differentiable: the op ``patchkit::geglu_erf``.

    Args:
        gate: ``[..., n]``, floating point. Rows may lie apart, as halves of a fused ``gate_up`` output do.
        up: like ``gate`` in shape, dtype and device.

    Returns:
        Contiguous, like ``gate`` in shape, dtype and device. In bf16 and fp16 the Triton kernel rounds once.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    return _erf_forward(gate, up)


def geglu_erf_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad_gate, grad_up)`` of :func:`geglu_erf`: the op ``patchkit::geglu_erf_backward``.

    Args:
        grad: gradient of the output, ``[..., n]``.
        gate: as given to :func:`geglu_erf`.
        up: as given to :func:`geglu_erf`.

    Returns:
        ``grad * up * gelu'(gate)`` and ``grad * gelu(gate)``, contiguous, like ``gate`` in shape and dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ.
    """
    return _erf_backward(grad, gate, up)


def geglu_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """``gelu(gate) * up`` with tanh GELU, differentiable: the op ``patchkit::geglu_tanh``.

    Arguments, result and errors are those of :func:`geglu_erf`.
    """
    return _tanh_forward(gate, up)


def geglu_tanh_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """``(grad_gate, grad_up)`` of :func:`geglu_tanh`: the op ``patchkit::geglu_tanh_backward``.

    Arguments, results and errors are those of :func:`geglu_erf_backward`.
    """
    return _tanh_backward(grad, gate, up)


def geglu_erf_backward_recompute(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`geglu_erf_backward` in place, with the value: the op ``patchkit::geglu_erf_backward_recompute``.

    Args:
        grad: gradient of the output, ``[..., n]``, contiguous. It is overwritten with ``grad * up * gelu'(gate)``.
        gate: as given to :func:`geglu_erf`.
        up: as given to :func:`geglu_erf`.

    Returns:
        ``grad * gelu(gate)`` and ``gelu(gate) * up``, contiguous, like ``gate`` in shape and dtype.

    Raises:
        ValueError: shapes, dtypes or devices differ, or ``grad`` is not contiguous.
    """
    return _erf_backward_recompute(grad, gate, up)


def geglu_tanh_backward_recompute(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`geglu_tanh_backward` in place, with the value: the op ``patchkit::geglu_tanh_backward_recompute``.

    Arguments, results and errors are those of :func:`geglu_erf_backward_recompute`.
    """
    return _tanh_backward_recompute(grad, gate, up)
