"""The gated activations by name: what a fused MLP can compute between its projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from patchkit_kernels.geglu import (
    geglu_erf,
    geglu_erf_backward,
    geglu_erf_reference,
    geglu_tanh,
    geglu_tanh_backward,
    geglu_tanh_reference,
)
from patchkit_kernels.swiglu import swiglu, swiglu_backward, swiglu_reference

Activation = Literal["silu", "gelu_erf", "gelu_tanh"]


class ActivationFunctions(NamedTuple):
    """The functions of one gated activation.

    Attributes:
        forward: (gate, up) to act(gate) * up.
        backward: (gradient of that, gate, up) to the gradients of gate and up.
        reference: forward in ordinary torch operations, differentiable any number of times.
    """

    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    reference: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS: dict[Activation, ActivationFunctions] = {
    "silu": ActivationFunctions(swiglu, swiglu_backward, swiglu_reference),
    "gelu_erf": ActivationFunctions(geglu_erf, geglu_erf_backward, geglu_erf_reference),
    "gelu_tanh": ActivationFunctions(geglu_tanh, geglu_tanh_backward, geglu_tanh_reference),
}
