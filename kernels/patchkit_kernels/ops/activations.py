"""The gated activations by name: what a fused MLP can compute between its projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from patchkit_kernels.ops import geglu, swiglu

Activation = Literal["silu", "gelu_erf", "gelu_tanh"]


class ActivationFunctions(NamedTuple):
    """The functions of one gated activation.

    Attributes:
        forward: (gate, up) to act(gate) * up.
        backward: (gradient of that, gate, up) to the gradients of gate and up.
        backward_recompute: the same to (gradient of up, act(gate) * up); the gradient of gate replaces the first.
        reference: forward in ordinary torch operations, differentiable any number of times.
    """

    forward: Callable[[Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    backward_recompute: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    reference: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS: dict[Activation, ActivationFunctions] = {
    "silu": ActivationFunctions(
        swiglu.swiglu, swiglu.swiglu_backward, swiglu.swiglu_backward_recompute, swiglu.swiglu_reference
    ),
    "gelu_erf": ActivationFunctions(
        geglu.geglu_erf, geglu.geglu_erf_backward, geglu.geglu_erf_backward_recompute, geglu.geglu_erf_reference
    ),
    "gelu_tanh": ActivationFunctions(
        geglu.geglu_tanh, geglu.geglu_tanh_backward, geglu.geglu_tanh_backward_recompute, geglu.geglu_tanh_reference
    ),
}
