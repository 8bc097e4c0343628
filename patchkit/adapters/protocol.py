"""What an adapter library's reader must provide, and the checks that all readers share.

A reader turns one projection module into the tensors that the fused functions take, or says why it cannot. It is asked
at every call, so it looks things up and computes nothing: whatever a user changes between two calls (adapters switched,
merged or deleted, weights replaced, hooks added) is seen by the next one, and nothing can go stale.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TypeAlias

from torch import Tensor, nn

from patchkit_kernels.projection import Projection, QuantizedWeight

Reason: TypeAlias = str
"""Why a projection runs at upstream level, in words for ``patchkit.report``."""

Reader: TypeAlias = Callable[[nn.Module], "Projection | Reason"]
"""Reads a module of exactly the type it is registered for. A subclass may compute something else and is not read."""

BaseReader: TypeAlias = Callable[[nn.Module], "tuple[Tensor | QuantizedWeight, Tensor | None] | Reason"]
"""Reads weight and bias of a layer that an adapter's layer wraps."""


def interference(module: nn.Module) -> Reason | None:
    """Why calling this module is not the same as computing its formula; None if it is.

    A hook may change the input or the output, gather a sharded weight or record values, and a ``forward`` set on the
    instance replaces the formula. All of them are honoured by calling the module.
    """
    # Read from the dictionary: this runs for every part of every projection at every call, and nn.Module's attribute
    # access alone would cost more than everything else.
    state = module.__dict__
    if not (
        state["_forward_pre_hooks"]
        or state["_forward_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    ):
        return None
    if "forward" in state and not is_own_forward(module, state["forward"]):
        return "forward was replaced on the instance"
    if state["_forward_pre_hooks"] or state["_forward_hooks"]:
        return "a forward hook is registered on it"
    if state["_backward_hooks"] or state["_backward_pre_hooks"]:
        return "a backward hook is registered on it"
    return None


def is_own_forward(module: nn.Module, forward: object) -> bool:
    """Whether this is the ``forward`` of a module's class, bound to the module.

    accelerate leaves it on the instance when it removes its hooks, and ``kernels.kernelize`` puts it where it has no
    kernel; it changes nothing.
    """
    return isinstance(forward, MethodType) and (forward.__self__, forward.__func__) == (module, type(module).forward)
