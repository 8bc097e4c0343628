"""Reader of a plain ``torch.nn.Linear``: a projection without an adapter."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from patchkit.adapters.formula import Formula
from patchkit.adapters.protocol import Reason, interference, quick
from patchkit_kernels.lora.projection import Projection

LINEAR = Formula({nn.Linear: "forward", F: "linear"}, {nn.Linear: "weight bias"})

LOOKED_UP = ("weight", "bias")
"""What a linear layer looks up, see :func:`interference`."""


def read_linear(module: nn.Module) -> Projection | Reason:
    """The weight and bias of a ``torch.nn.Linear``, or why it must be called instead."""
    found = weight_and_bias(module)
    return found if isinstance(found, str) else quick(Projection, (*found, ()))


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None] | Reason:
    """The same, for a layer that adds to it."""
    state = module.__dict__
    # What interference looks at, without the call: this runs for every projection at every call.
    if (
        (state["_forward_pre_hooks"] or state["_forward_hooks"])
        or (state["_backward_hooks"] or state["_backward_pre_hooks"])
        or ("forward" in state or "_call_impl" in state or "_compiled_call_impl" in state)
        or ("weight" in state or "bias" in state)
    ):
        reason = interference(module, LOOKED_UP)
        if reason is not None:
            return reason
    parameters = state["_parameters"]
    try:
        weight, bias = parameters["weight"], parameters["bias"]
    except KeyError as error:  # a buffer may stand in its place
        return f"its {error.args[0]} is not a parameter"
    return "its weight is not a parameter" if weight is None else (weight, bias)
