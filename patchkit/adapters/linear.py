"""Reader of a plain ``torch.nn.Linear``: a projection without an adapter."""

from __future__ import annotations

from torch import Tensor, nn

from patchkit.adapters.protocol import Reason, interference
from patchkit_kernels.projection import Projection


def read_linear(module: nn.Module) -> Projection | Reason:
    """The weight and bias of a ``torch.nn.Linear``, or why it must be called instead."""
    found = weight_and_bias(module)
    return found if isinstance(found, str) else Projection(*found)


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None] | Reason:
    """The same, for a layer that adds to it."""
    reason = interference(module)
    if reason is not None:
        return reason
    parameters = module.__dict__["_parameters"]
    weight = parameters.get("weight")
    if weight is None:
        return "its weight is not a parameter"
    return weight, parameters.get("bias")
