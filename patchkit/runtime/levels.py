"""The choice of level, made anew at every call.

* ``fused``: the whole block in one autograd function;
* ``linear``: each projection whose adapter is understood fused alone, the others called;
* ``upstream``: every module called, as the original source does.

Whatever is not known to give the same numbers is called. The choice costs a few microseconds: it reads attributes and
compares dtypes and devices, and never looks at the values of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks
from torch.utils.module_tracker import ModuleTracker

from patchkit.adapters.protocol import Reason
from patchkit.adapters.readers import read_projection
from patchkit_kernels.projection import Precision, Projection

Level = Literal["fused", "linear", "upstream"]

# Exact types: a subclass (DTensor, a quantised or an offloaded weight) has its own rules for every operation.
_PLAIN_TENSORS = frozenset({Tensor, nn.Parameter, FakeTensor})
_FLOATS = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_HALVES = frozenset({torch.bfloat16, torch.float16})


class Ready(NamedTuple):
    """A projection that can be computed from its tensors, and the precision in which PEFT computes it."""

    projection: Projection
    precision: Precision


class Input(NamedTuple):
    """What the choice needs to know of a projection's input.

    Attributes:
        features: size of its last dimension.
        dtype: its dtype.
        device: its device.
        autocast: the dtype of the surrounding autocast region, or None.
    """

    features: int
    dtype: torch.dtype
    device: torch.device
    autocast: torch.dtype | None


def input_of(x: Tensor) -> Input:
    """The :class:`Input` of a tensor ``[..., features]``, under the autocast state of this moment."""
    device = x.device
    autocast = torch.get_autocast_dtype(device.type) if _autocasts(device.type) else None
    return Input(x.shape[-1], x.dtype, device, autocast)


def _autocasts(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def call_reason(x: object) -> Reason | None:
    """Why this call as a whole runs upstream, whatever the modules are; None if nothing speaks against it."""
    if type(x) not in _PLAIN_TENSORS:
        return f"the input is a {type(x).__module__}.{type(x).__qualname__}"
    assert isinstance(x, Tensor)
    if x.dim() == 0:
        return "the input is a scalar"
    if any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in _global_hooks()):
        return "a global module hook is registered"
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "inside a torch.func transform"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    if torch._C._get_tracing_state() is not None:
        return "inside torch.jit.trace"
    return None


def _global_hooks() -> Iterator[object]:
    """Hooks on every module of the process. torch's own ModuleTracker (in FlopCounterMode) only watches."""
    return chain(
        module_hooks._global_forward_hooks.values(),
        module_hooks._global_forward_pre_hooks.values(),
        module_hooks._global_backward_hooks.values(),
        module_hooks._global_backward_pre_hooks.values(),
    )


def examine(module: nn.Module, given: Input) -> Ready | Reason:
    """A projection module for this input: its tensors and precision, or why it must be called."""
    projection = read_projection(module)
    if isinstance(projection, str):
        return projection
    weight = projection.weight
    if type(weight) not in _PLAIN_TENSORS:
        return f"its weight is a {type(weight).__module__}.{type(weight).__qualname__}"
    if weight.dim() != 2 or weight.shape[1] != given.features:
        return "its weight does not have the shape of a full matrix"
    if weight.device != given.device:
        return "it is on another device than its input"
    lora_a, lora_b = projection.lora_a, projection.lora_b
    if lora_a is None or lora_b is None:
        precision = _precision(given, weight.dtype, weight.dtype)
    elif type(lora_a) not in _PLAIN_TENSORS or type(lora_b) not in _PLAIN_TENSORS:
        return f"its adapter is a {type(lora_a).__module__}.{type(lora_a).__qualname__}"
    elif lora_a.device != given.device or lora_b.device != given.device:
        return "its adapter is on another device than its input"
    elif lora_a.shape[1] != given.features or lora_b.shape[1] != lora_a.shape[0] or lora_a.dtype != lora_b.dtype:
        return "its A and B do not fit together"
    else:
        precision = _precision(given, weight.dtype, lora_a.dtype)
    return precision if isinstance(precision, str) else Ready(projection, precision)


def _precision(given: Input, weight: torch.dtype, lora: torch.dtype) -> Precision | Reason:
    """In which dtypes upstream computes, or why that is left to upstream."""
    if weight not in _FLOATS or lora not in _FLOATS or given.dtype not in _FLOATS:
        return f"weights are {weight}, adapters {lora}, the input {given.dtype}"
    if given.autocast is not None:
        # Autocast leaves float64 alone. PEFT casts the input to A's dtype before autocast sees it, so an A in the
        # other half precision would round twice.
        if torch.float64 in (weight, lora, given.dtype) or lora not in (torch.float32, weight, given.autocast):
            return f"autocast to {given.autocast} over {weight} weights and {lora} adapters"
        if lora in _HALVES and lora != given.autocast:
            return f"autocast to {given.autocast} over {lora} adapters"
        return Precision(given.autocast, given.autocast)
    if weight != given.dtype:
        return f"its weight is {weight}, its input {given.dtype}"
    if weight != lora and weight in _HALVES and lora in _HALVES:
        return f"its weight is {weight}, its adapter {lora}"
    return Precision(weight, lora)


def adapted(ready: Ready) -> bool:
    """Whether the projection has an adapter in this call."""
    return ready.projection.lora_a is not None


def common_precision(readings: Sequence[Ready | Reason]) -> Precision | Reason:
    """The one precision of projections that are to be computed together, or why they cannot be."""
    precision: Precision | None = None
    for reading in readings:
        if isinstance(reading, str):
            return reading
        if precision is None or (adapted(reading) and precision.base == reading.precision.base):
            precision = reading.precision
    assert precision is not None
    for reading in readings:
        assert isinstance(reading, Ready)
        if reading.precision.base != precision.base or (adapted(reading) and reading.precision != precision):
            return "the projections differ in dtype"
    return precision
