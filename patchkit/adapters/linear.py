"""Reader of a plain ``torch.nn.Linear``: a projection without an adapter."""

from __future__ import annotations

from torch import nn

from patchkit.adapters.protocol import Reason, interference
from patchkit_kernels.projection import Projection


def read_linear(module: nn.Module) -> Projection | Reason:
    """The weight and bias of a ``torch.nn.Linear``, or why it must be called instead."""
    reason = interference(module)
    if reason is not None:
        return reason
    state = module.__dict__
    parameters = state["_parameters"]
    weight = parameters.get("weight")
    if weight is None:
        return "its weight is not a parameter"
    return Projection(weight, parameters.get("bias"))
