"""The choice of level, made anew at every call.

* ``fused``: the whole block in one autograd function;
* ``alone``: each projection whose adapter is understood fused alone, the others called;
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
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.module_tracker import ModuleTracker

from patchkit.adapters.peft import FORMULA
from patchkit.adapters.protocol import Reader, Reason, quick
from patchkit.adapters.registry import READERS, casts_input, read_projection
from patchkit.runtime.precision import PRECISIONS, AdapterPrecision, Precisions, precision_of
from patchkit_kernels.lora.projection import Precision, Projection

_traced = torch.compiler.is_dynamo_compiling
_functorch_level = torch._C._functorch.peek_interpreter_stack
_tracing_state = torch._C._get_tracing_state
_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_autocast = torch._C._is_any_autocast_enabled
_strided, _Parameter = torch.strided, nn.Parameter

UNFIT_VECTOR: Reason = "the bias or magnitude of its adapter does not fit"
GLOBAL_HOOK: Reason = "a global module hook is registered"

Level = Literal["fused", "alone", "upstream"]

# Exact types: a subclass (DTensor, a quantised or an offloaded weight) has its own rules for every operation.
PLAIN_TENSORS = frozenset({Tensor, nn.Parameter, FakeTensor})


class Ready(NamedTuple):
    """A projection that can be computed from its tensors, and the precision in which its library computes it."""

    projection: Projection
    precision: Precision


class Input(NamedTuple):
    """What the choice needs to know of a projection's input.

    Attributes:
        features: size of its last dimension.
        dtype: its dtype.
        device: its device.
        autocast: the dtype of the surrounding autocast region, or None.
        precision: the option of ``patchkit.apply``.
        dims: its number of dimensions.
        table: of precisions; empty while compiling, since a graph would get a guard for every entry.
    """

    features: int
    dtype: torch.dtype
    device: torch.device
    autocast: torch.dtype | None
    precision: AdapterPrecision
    dims: int
    table: Precisions


def input_of(x: Tensor, precision: AdapterPrecision = "peft") -> Input | Reason:
    """The :class:`Input` of a tensor ``[..., features]``, under the autocast state of this moment.

    Or why this call as a whole runs upstream, whatever the modules are.
    """
    if type(x) not in PLAIN_TENSORS:
        return f"the input is a {type(x).__module__}.{type(x).__qualname__}"
    if x.layout is not _strided:
        return "the input is a sparse or nested tensor"
    try:
        shape = x.shape
    except RuntimeError:  # the older kind of nested tensor calls itself strided, and has no sizes
        return "the input is a sparse or nested tensor"
    dims = len(shape)
    if dims == 0:
        return "the input is a scalar"
    if (
        module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
    ) and any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in _global_hooks()):
        return GLOBAL_HOOK
    table = PRECISIONS
    if _traced():
        table = {}
        reason = FORMULA.replaced() or _function_mode()
        if reason is not None:
            return reason
    elif (
        not FORMULA.intact()
        or _function_modes()
        or _dispatch_modes()
        or _functorch_level() is not None
        or forward_ad._current_level >= 0
        or _tracing_state() is not None
    ):
        reason = _surroundings()
        if reason is not None:
            return reason
    device, dtype, autocast = x.device, x.dtype, None
    if _any_autocast() and device.type != "meta" and torch.is_autocast_enabled(device.type):
        autocast = torch.get_autocast_dtype(device.type)
    return quick(Input, (shape[-1], dtype, device, autocast, precision, dims, table))


def _surroundings() -> Reason | None:
    """Why nothing can be fused at this moment, or None."""
    reason = FORMULA.replaced()
    if reason is not None:
        return reason
    if torch.compiler.is_compiling():  # export that runs the code instead of tracing it
        return _function_mode()
    if _functorch_level() is not None:
        return "inside a torch.func transform"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    if _tracing_state() is not None:
        return "inside torch.jit.trace"
    reason = _function_mode()
    if reason is not None:
        return reason
    for mode in _get_current_dispatch_mode_stack():
        # torch's own know custom functions; patchkit's count.
        if not type(mode).__module__.startswith(("torch.", "patchkit.")):
            return f"inside the dispatch mode {type(mode).__module__}.{type(mode).__qualname__}"
    return None


def _function_mode() -> Reason | None:
    """The mode that may replace any function of torch by another one, or None.

    torch's default device is such a mode too; it only adds a device where a tensor is made without one.
    """
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        if type(mode) is not DeviceContext:
            return f"inside the function mode {type(mode).__module__}.{type(mode).__qualname__}"
    return None


def _global_hooks() -> Iterator[object]:
    """Hooks on every module of the process. torch's own ModuleTracker (in FlopCounterMode) only watches."""
    return chain(
        module_hooks._global_forward_hooks.values(),
        module_hooks._global_forward_pre_hooks.values(),
        module_hooks._global_backward_hooks.values(),
        module_hooks._global_backward_pre_hooks.values(),
    )


def examine(module: nn.Module, given: Input, reader: Reader | None = None) -> Ready | Reason:
    """A projection module for this input: its tensors and precision, or why it must be called.

    Args:
        module: the module.
        given: its input.
        reader: of its class, if the caller knows it.
    """
    if reader is None:
        reader = READERS.get(type(module))
    projection = read_projection(module) if reader is None else reader(module)
    if type(projection) is not Projection:
        return projection  # type: ignore[return-value]
    features, given_dtype, device, autocast, adapter_precision, dims, table = given
    weight, bias, adapters = projection
    kind = type(weight)
    if kind is _Parameter or kind in PLAIN_TENSORS:
        dtype, stored = weight.dtype, False  # type: ignore[union-attr]
        if weight.layout is not _strided:  # type: ignore[union-attr]
            return "its weight is sparse"
    elif isinstance(weight, Tensor):
        return f"its weight is a {kind.__module__}.{kind.__qualname__}"
    else:
        dtype, stored = weight.compute_dtype(given_dtype), True
    try:
        outputs, inputs = weight.shape
    except ValueError:
        inputs = None
    if inputs != features:
        return f"its weight has shape {tuple(weight.shape)} for {features} features (sharded, or not a matrix)"
    if weight.device != device:
        return "it is on another device than its input"
    if bias is not None and (
        type(bias) not in PLAIN_TENSORS
        or bias.device != device
        or bias.shape != (outputs,)
        or (bias.dtype != dtype and not stored and autocast is None)
    ):
        return "its bias does not fit its weight"
    lora, draws = dtype, False
    for adapter in adapters:
        lora_a, lora_b, _, lora_bias, magnitude, dropout = adapter
        if (type(lora_a) is not _Parameter and type(lora_a) not in PLAIN_TENSORS) or (
            type(lora_b) is not _Parameter and type(lora_b) not in PLAIN_TENSORS
        ):
            odd = type(lora_b if type(lora_a) in PLAIN_TENSORS else lora_a)
            return f"its adapter is a {odd.__module__}.{odd.__qualname__}"
        if lora_a.device != device or lora_b.device != device:
            return "its adapter is on another device than its input"
        try:
            (rank, inputs), (rows, columns) = lora_a.shape, lora_b.shape
        except ValueError:
            return "its A or B is not a matrix"
        adapter_dtype = lora_a.dtype
        # Numbers, not shapes: comparing a torch.Size costs more than making it.
        if inputs != features or rows != outputs or columns != rank or lora_b.dtype is not adapter_dtype:
            return "its A and B do not fit together"
        if magnitude is not None:
            if _is_unfit(magnitude, device, rows):
                return UNFIT_VECTOR
            if dims < 2:
                return "DoRA makes a matrix of a single vector"
        if lora_bias is not None:
            if _is_unfit(lora_bias, device, rows):
                return UNFIT_VECTOR
            if autocast is None and lora_bias.dtype is not adapter_dtype:
                return "the bias of its B does not have B's dtype"
        if adapter_dtype is not lora and adapter is not adapters[0]:
            return "its adapters differ in dtype"
        lora = adapter_dtype
        if dropout:
            draws = True
    precision = table.get((given_dtype, autocast, dtype, lora, stored, adapter_precision))
    if precision is None:
        precision = precision_of(given_dtype, autocast, dtype, lora, stored, adapter_precision)
    if type(precision) is not Precision:
        return precision  # type: ignore[return-value]
    if draws and autocast is not None and precision.drawn is not given_dtype and not casts_input(type(module)):
        precision = precision._replace(drawn=given_dtype)
    return quick(Ready, (projection, precision))


def _is_unfit(vector: Tensor, device: torch.device, outputs: int) -> bool:
    """Whether the bias of B or DoRA's magnitude cannot be computed with."""
    try:
        (size,) = vector.shape
    except ValueError:
        return True
    return size != outputs or vector.device != device or type(vector) not in PLAIN_TENSORS


def adapted(ready: Ready) -> bool:
    """Whether the projection has an adapter in this call."""
    return bool(ready.projection.adapters)


def common_precision(readings: Sequence[Ready | Reason]) -> Precision | Reason:
    """The one precision of projections that are to be computed together, or why they cannot be."""
    precision: Precision | None = None
    for reading in readings:
        if isinstance(reading, str):
            return reading
        found = reading.precision
        # The table gives the same object for the same dtypes, so that this is all that most calls look at.
        if found is precision:
            continue
        if precision is None or (adapted(reading) and precision.products == found.products):
            precision = found
    assert precision is not None
    for reading in readings:
        assert isinstance(reading, Ready)
        found = reading.precision
        if found is not precision and found != precision and (found.products != precision.products or adapted(reading)):
            return "the projections differ in dtype"
    return precision
