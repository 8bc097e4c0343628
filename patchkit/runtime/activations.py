"""Which function an activation module computes, read from the module itself and never from a config.

"gelu" names two different functions: the exact one (erf) and its tanh approximation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn
from transformers import activations as upstream

from patchkit.adapters.protocol import interference
from patchkit_kernels.activations import Activation

_SILU = {nn.SiLU, getattr(upstream, "SiLUActivation", nn.SiLU)}
# Before transformers 5 the tanh form was PytorchGELUTanh; where both names exist they are one class.
_GELU_TANH = {
    upstream.NewGELUActivation,
    upstream.FastGELUActivation,
    getattr(upstream, "GELUTanh", upstream.NewGELUActivation),
    getattr(upstream, "PytorchGELUTanh", upstream.NewGELUActivation),
}


def read_activation(module: object) -> Activation | None:
    """The name of the function, or None if it is not one that is fused, or must be called for another reason."""
    kind = type(module)
    if not isinstance(module, nn.Module):
        return "silu" if module is F.silu else None
    if interference(module) is not None:
        return None
    if kind in _SILU:
        return None if module.__dict__.get("inplace") else "silu"
    if kind in _GELU_TANH:
        return "gelu_tanh"
    if kind is upstream.GELUActivation:
        return "gelu_erf"
    if kind is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu_erf"
    return None
