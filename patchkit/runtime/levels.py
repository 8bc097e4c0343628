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
from patchkit_kernels.projection import Adapter, Precision, Projection

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
    weight, _, adapters = projection
    if isinstance(weight, Tensor):
        kind = type(weight)
        if kind not in _PLAIN_TENSORS:
            return f"its weight is a {kind.__module__}.{kind.__qualname__}"
        dtype, stored = weight.dtype, False
    else:
        dtype, stored = weight.compute_dtype(given.dtype), True
    shape = weight.shape
    if len(shape) != 2 or shape[1] != given.features:
        return "its weight does not have the shape of a full matrix"
    if weight.device != given.device:
        return "it is on another device than its input"
    lora: torch.dtype | None = None
    for adapter in adapters:
        reason = _unfit(adapter, shape, given)
        if reason is not None:
            return reason
        if lora is not None and adapter.lora_a.dtype != lora:
            return "its adapters differ in dtype"
        lora = adapter.lora_a.dtype
    precision = (_stored_precision if stored else _precision)(given, dtype, dtype if lora is None else lora)
    return precision if isinstance(precision, str) else Ready(projection, precision)


def _unfit(adapter: Adapter, shape: Sequence[int], given: Input) -> Reason | None:
    """Why an adapter cannot be computed together with a weight of this shape; None if it can."""
    lora_a, lora_b, _, bias, magnitude, _ = adapter
    if type(lora_a) not in _PLAIN_TENSORS or type(lora_b) not in _PLAIN_TENSORS:
        return f"its adapter is a {type(lora_a).__module__}.{type(lora_a).__qualname__}"
    if lora_a.device != given.device or lora_b.device != given.device:
        return "its adapter is on another device than its input"
    shape_a, shape_b = lora_a.shape, lora_b.shape
    if shape_a[1] != shape[1] or shape_b[1] != shape_a[0] or shape_b[0] != shape[0] or lora_a.dtype != lora_b.dtype:
        return "its A and B do not fit together"
    for vector in (bias, magnitude):
        if vector is not None and (
            type(vector) not in _PLAIN_TENSORS or vector.device != given.device or vector.shape != shape[:1]
        ):
            return "the bias or magnitude of its adapter does not fit"
    return None


def _precision(given: Input, weight: torch.dtype, lora: torch.dtype) -> Precision | Reason:
    """In which dtypes upstream computes with a plain weight, or why that is left to upstream."""
    if weight not in _FLOATS or lora not in _FLOATS or given.dtype not in _FLOATS:
        return f"weights are {weight}, adapters {lora}, the input {given.dtype}"
    if given.autocast is not None:
        # Autocast leaves float64 alone. PEFT casts the input to A's dtype before autocast sees it, so an A in the
        # other half precision would round twice.
        if torch.float64 in (weight, lora, given.dtype) or lora not in (torch.float32, weight, given.autocast):
            return f"autocast to {given.autocast} over {weight} weights and {lora} adapters"
        if lora in _HALVES and lora != given.autocast:
            return f"autocast to {given.autocast} over {lora} adapters"
        return Precision(given.autocast, given.autocast, given.autocast, lora)
    if weight != given.dtype:
        return f"its weight is {weight}, its input {given.dtype}"
    if weight != lora and weight in _HALVES and lora in _HALVES:
        return f"its weight is {weight}, its adapter {lora}"
    return Precision(weight, lora, weight, lora)


def _stored_precision(given: Input, compute: torch.dtype, lora: torch.dtype) -> Precision | Reason:
    """The same over a quantised weight, whose products autocast does not touch and whose output has x's dtype."""
    if compute not in _FLOATS or lora not in _FLOATS or given.dtype not in _FLOATS:
        return f"weights compute in {compute}, adapters are {lora}, the input {given.dtype}"
    if given.autocast is not None:
        # PEFT does not cast the input here, so autocast is what brings it and the adapter together.
        if torch.float64 in (lora, given.dtype):
            return f"autocast to {given.autocast} over {lora} adapters"
        return Precision(compute, given.autocast, given.dtype, given.dtype)
    if given.dtype != lora and given.dtype in _HALVES and lora in _HALVES:
        return f"its input is {given.dtype}, its adapter {lora}"
    return Precision(compute, lora, given.dtype, lora)


def adapted(ready: Ready) -> bool:
    """Whether the projection has an adapter in this call."""
    return bool(ready.projection.adapters)


def common_precision(readings: Sequence[Ready | Reason]) -> Precision | Reason:
    """The one precision of projections that are to be computed together, or why they cannot be."""
    precision: Precision | None = None
    for reading in readings:
        if isinstance(reading, str):
            return reading
        if precision is None or (adapted(reading) and precision.products == reading.precision.products):
            precision = reading.precision
    assert precision is not None
    for reading in readings:
        assert isinstance(reading, Ready)
        if reading.precision.products != precision.products or (adapted(reading) and reading.precision != precision):
            return "the projections differ in dtype"
    return precision
