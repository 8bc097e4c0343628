"""What an adapter library's reader must provide, and the checks that all readers share.

A reader turns one projection module into the tensors that the fused functions take, or says why it cannot. It is asked
at every call, so it looks things up and computes nothing: whatever a user changes between two calls (adapters switched,
merged or deleted, weights replaced, hooks added) is seen by the next one, and nothing can go stale.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType, MethodType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from patchkit_kernels.lora.embedding import EmbeddingTable
from patchkit_kernels.lora.projection import Projection, QuantizedWeight

LARGEST = sys.float_info.max

Reason: TypeAlias = str
"""Why a projection runs at upstream level, in words for ``patchkit.report``."""

Reader: TypeAlias = Callable[[nn.Module], "Projection | Reason"]
"""Reads a module of exactly the type it is registered for. A subclass may compute something else and is not read."""

BaseReader: TypeAlias = Callable[[nn.Module], "tuple[Tensor | QuantizedWeight, Tensor | None] | Reason"]
"""Reads weight and bias of a layer that an adapter's layer wraps."""


EmbeddingReader: TypeAlias = Callable[[nn.Module], "EmbeddingTable | Reason"]
"""Reads an embedding of exactly the type it is registered for, or says why its own ``forward`` must run."""


class Library(NamedTuple):
    """What the file of an adapter library registers.

    Attributes:
        readers: of the layers that are understood, by exact type.
        layers: classes of which every layer with an adapter of this library is an instance, understood or not.
        casts_input: whether its layers cast their input to the adapter's dtype before dropout is drawn for it.
        embeddings: readers of its embeddings, by exact type.
    """

    readers: Mapping[type[nn.Module], Reader]
    layers: tuple[type, ...]
    casts_input: bool
    embeddings: Mapping[type[nn.Module], EmbeddingReader] = MappingProxyType({})


quick = tuple.__new__
"""``quick(Class, values)`` makes a named tuple in half the time of ``Class(*values)``, for what runs at every call."""


def interference(module: nn.Module, looked_up: tuple[str, ...] = ()) -> Reason | None:
    """Why calling this module is not the same as computing its formula; None if it is.

    A hook may change the input or the output, gather a sharded weight or record values, and what is set on the instance
    is found before what the class has under that name, or before a parameter or submodule. All of it is honoured by
    calling the module.

    Args:
        module: the module.
        looked_up: names that its formula looks up on it, besides those that every call does. No ordinary instance has
            them in its dictionary: submodules and parameters are kept elsewhere.
    """
    # Read from the dictionary: this runs for every part of every projection at every call, and nn.Module's attribute
    # access alone would cost more than everything else.
    state = module.__dict__
    for name in looked_up:
        if name in state:
            return f"{name} was replaced on the instance"
    if not (
        state["_forward_pre_hooks"]
        or state["_forward_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        or "_call_impl" in state
        or "_compiled_call_impl" in state
    ):
        return None
    if "forward" in state and not is_own_forward(module, state["forward"]):
        return "forward was replaced on the instance"
    if "_call_impl" in state or state.get("_compiled_call_impl") is not None:
        return "its call was replaced on the instance, as module.compile() does"
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


def drop_probability(dropout: nn.Module) -> float | Reason:
    """The probability with which a dropout module drops an element in this call, or why it must be called.

    Args:
        dropout: ``torch.nn.Dropout``, or ``torch.nn.Identity`` for none. Hooks are the caller's to look for.
    """
    if type(dropout) is nn.Identity:
        return 0.0
    if type(dropout) is not nn.Dropout:
        return f"its dropout is a {type(dropout).__qualname__}"
    if not dropout.training:
        return 0.0
    if dropout.inplace:
        return "its dropout works in place"
    probability = dropout.p
    if type(probability) is not float and type(probability) is not int:
        return f"its dropout probability is a {type(probability).__name__}"
    return probability if 0 <= probability <= 1 else f"its dropout probability is {probability}"


def unfit_scaling(scaling: object) -> Reason | None:
    """Why the fused functions do not take this s; None if they do."""
    if type(scaling) is not float and type(scaling) is not int:
        return f"its scaling is a {type(scaling).__name__}"
    # The products of some libraries take no notice of a factor that is NaN.
    return None if -LARGEST <= scaling <= LARGEST else f"its scaling is {scaling}"


def autocasts(device_type: str) -> bool:
    """Whether this is called in an autocast region for a type of device ("meta", which has none, included)."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def lacks_cast(weight: Tensor, *others: Tensor | None) -> bool:
    """Whether a layer that casts nothing mixes dtypes that autocast does not bring together in this call.

    Args:
        weight: the layer's W.
        others: what else takes part; None for what is not there.
    """
    dtype = weight.dtype
    mixed = any(tensor is not None and tensor.dtype != dtype for tensor in others)
    return mixed and not autocasts(weight.device.type)
