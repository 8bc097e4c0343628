"""Readers of linear layers that are not exactly ``torch.nn.Linear``, as bases of an adapter's layer.

* ``transformers.pytorch_utils.Conv1D`` keeps its weight as ``[in, out]`` (gpt2 and its relatives).
* ``FalconLinear`` writes the product and the sum out.
* A subclass of ``torch.nn.Linear`` that computes what ``torch.nn.Linear`` does differs in how it is made, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from patchkit.adapters.formula import Formula, defines_any
from patchkit.adapters.linear import LINEAR, LOOKED_UP, weight_and_bias
from patchkit.adapters.protocol import BaseReader, Reason, autocasts, interference

_Read: TypeAlias = "tuple[Tensor, Tensor | None] | Reason"

TRANSPOSED: frozenset[type[nn.Module]] = frozenset({Conv1D})
"""The classes that keep their weight as ``[in, out]``; their readers give ``[out, in]``, a view."""

_CONV1D = Formula({Conv1D: "forward", torch: "addmm"}, {Conv1D: "weight bias"})
_FALCON = ("transformers.models.falcon.modeling_falcon", "FalconLinear")
_CALLS = ("forward", "__call__", "_call_impl", "_compiled_call_impl", "__getattr__", "__getattribute__", *LOOKED_UP)


def read_conv1d(module: nn.Module) -> _Read:
    """The weight ``[out, in]`` and the bias of a ``Conv1D``, or why it must be called instead."""
    reason = interference(module, LOOKED_UP) or _CONV1D.replaced()
    if reason is not None:
        return reason
    found = weight_and_bias(module)
    if isinstance(found, str):
        return found
    weight, bias = found
    if weight.dim() != 2 or weight.shape[1] != module.nf or bias is None:
        return "its weight is not a matrix [in, out], or it has no bias"
    return weight.t(), bias


def _read_falcon(formula: Formula, module: nn.Module) -> _Read:
    """The weight and bias of a ``FalconLinear``. It adds its bias outside the product, where autocast casts nothing."""
    reason = interference(module, LOOKED_UP) or formula.replaced()
    found = weight_and_bias(module) if reason is None else reason
    if isinstance(found, str):
        return found
    weight, bias = found
    if bias is not None and (bias.dtype != weight.dtype or autocasts(weight.device.type)):
        return "its bias is added in another dtype than that of the product"
    return found


def _read_alike(formula: Formula, module: nn.Module) -> _Read:
    return formula.replaced() or weight_and_bias(module)


KNOWN: dict[type[nn.Module], BaseReader] = {nn.Linear: weight_and_bias, Conv1D: read_conv1d}
"""The readers of bases of ``lora.Linear`` by exact type. Those of subclasses are added as they are met."""


def base_reader(cls: type[nn.Module]) -> BaseReader | None:
    """The reader of a base of ``lora.Linear``, or None if nobody knows what it computes."""
    reader = KNOWN.get(cls)
    if reader is None:
        reader = _reader_of_subclass(cls)
        if reader is not None:
            KNOWN[cls] = reader
    return reader


def _reader_of_subclass(cls: type[nn.Module]) -> BaseReader | None:
    if not issubclass(cls, nn.Linear):
        return None
    read: Callable[[Formula, nn.Module], _Read] = _read_alike
    names: Iterable[str] = _CALLS
    if (cls.__module__, cls.__qualname__) == _FALCON:
        read, names = _read_falcon, set(_CALLS) - {"forward"}
    if defines_any(cls, names, below=nn.Linear):
        return None
    functions = {cls: "forward", F: "linear"}
    return partial(read, Formula(functions, {cls: " ".join(LOOKED_UP)}) | LINEAR)
