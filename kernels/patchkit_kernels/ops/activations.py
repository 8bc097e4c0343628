"""The activations by name: what a fused MLP can compute between its projections.

Those that the MLPs of transformers 5.23 have by default. Its configurations name, in fields for an activation, gelu
259 times, silu or swish 203, relu 72, gelu_pytorch_tanh 45, quick_gelu 25, gelu_new 17 and relu2 9 times; sigmoid is
what gated linear units were first written with. Left to upstream: tanh (6, all of them poolers), hardswish (3) and
relu6 (2) of convolutional networks, prelu (2) and xielu (1), which have parameters, and leaky_relu (1).
"""

from __future__ import annotations

from typing import Literal, get_args

from patchkit_kernels.ops.activation_function import ActivationFunction
from patchkit_kernels.ops.gated_activation import GatedActivation
from patchkit_kernels.ops.gelu import GELU_ERF, GELU_TANH
from patchkit_kernels.ops.plain_activation import PlainActivation
from patchkit_kernels.ops.quick_gelu import QUICK_GELU
from patchkit_kernels.ops.relu import RELU, RELU2
from patchkit_kernels.ops.sigmoid import SIGMOID
from patchkit_kernels.ops.silu import SILU

Activation = Literal["silu", "gelu_erf", "gelu_tanh", "relu", "relu2", "quick_gelu", "sigmoid"]

_FUNCTIONS: dict[str, ActivationFunction] = {
    function.name: function for function in (SILU, GELU_ERF, GELU_TANH, RELU, RELU2, QUICK_GELU, SIGMOID)
}

GATED: dict[Activation, GatedActivation] = {name: GatedActivation(_FUNCTIONS[name]) for name in get_args(Activation)}
"""``act(gate) * up``."""

PLAIN: dict[Activation, PlainActivation] = {name: PlainActivation(_FUNCTIONS[name]) for name in get_args(Activation)}
"""``act(x)``."""
