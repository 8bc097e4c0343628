"""The ``forward`` of PEFT's ``ParamWrapper``, which adapts parameters of a module: experts, routers, anything.

PEFT computes ``W + s B A`` of each adapted parameter, gives the module that in place of W, and lets it run. Here the
module gets a stand-in that multiplies with W and with the factors, and runs as it is: in whichever implementation its
configuration chooses, with its own gate, biases and norms. Nothing of its source is replaced, so there is nothing to
prove of it, but for what it does with the parameters: see :mod:`patchkit.runtime.parameter_uses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.adapters.peft_parameters import AdaptedParameter, AdaptedParameters, ParameterAdapter, read_parameters
from patchkit.adapters.protocol import Reason
from patchkit.errors import MergedInBetweenError
from patchkit.runtime.adapted_weight import AdaptedWeight
from patchkit.runtime.checkpointing import as_in_forward, is_saved_by_hooks, watched
from patchkit.runtime.choice import NO_ADAPTER
from patchkit.runtime.levels import PLAIN_TENSORS, Input, input_of
from patchkit.runtime.parameter_uses import unfit_uses
from patchkit.runtime.precision import FLOATS, AdapterPrecision, precision_of
from patchkit.runtime.replay import THEN_CALLED, Watched, is_for_hooks
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.stack import StackAdapter

REPLACED: Reason = "its forward was replaced, or it is called for a mixed batch"


def choose_parameters(
    module: nn.Module, x: Tensor, precision: AdapterPrecision = "peft", reader: Any = None
) -> AdaptedParameters | Reason:
    """The parameters that a ``ParamWrapper`` adapts in a call for x, or why PEFT's own ``forward`` must run.

    Args:
        module: the outermost of nested wrappers.
        x: the first argument of the call.
        precision: see :data:`patchkit.runtime.precision.AdapterPrecision`. PEFT casts A and B to the parameter's dtype.
        reader: not needed; every kind of layer is asked alike.
    """
    if torch.compiler.is_compiling():
        return "torch.compile does not trace what stands in for a parameter"
    given = input_of(x, precision)
    if isinstance(given, str):
        return given
    found = read_parameters(module)
    if isinstance(found, str) or not found.parameters:
        return found if isinstance(found, str) else NO_ADAPTER
    inner, parameters, _ = found
    for parameter in parameters:
        reason = _misfit(parameter, given)
        if reason is not None:
            return f"{parameter.name}: {reason}"
    reason = unfit_uses(inner, tuple(parameter.name for parameter in parameters))
    return found if reason is None else f"{type(inner).__name__}: {reason}"


def _misfit(parameter: AdaptedParameter, given: Input) -> Reason | None:
    """Why a parameter is not one to multiply with, for this input; None if it is."""
    weight = parameter.weight
    for tensor in (weight, *(factor for adapter in parameter.adapters for factor in adapter[:2])):
        if type(tensor) not in PLAIN_TENSORS:
            return f"one of its tensors is a {type(tensor).__module__}.{type(tensor).__qualname__}"
        if tensor.layout is not torch.strided or tensor.dtype not in FLOATS:
            return f"one of its tensors is {tensor.layout} and {tensor.dtype}"
        if tensor.device != given.device:
            return "it is on another device than its input"
    if weight.requires_grad:
        return "it is trained itself"
    if weight.dim() not in (2, 3) or not all(_fits(adapter, parameter) for adapter in parameter.adapters):
        return "its A and B do not fit it"
    dtypes = (given.dtype, given.autocast, weight.dtype, weight.dtype, False, given.precision)
    found = given.table.get(dtypes) or precision_of(*dtypes)
    return None if isinstance(found, Precision) else found


def _fits(adapter: ParameterAdapter, parameter: AdaptedParameter) -> bool:
    """Whether A and B have the shapes of a parameter's factors."""
    *stack, rows, columns = parameter.weight.shape
    a, b = adapter.lora_a, adapter.lora_b
    inputs, outputs = (columns, rows) if parameter.swapped or not stack else (rows, columns)
    ranks = a.shape[0] == b.shape[-1] and a.shape[0] % (stack[0] if stack else 1) == 0
    return a.dim() == 2 and b.dim() == 2 and ranks and (a.shape[1], b.shape[0]) == (inputs, outputs)


def make_parameters_forward(cls: type[nn.Module], precision: AdapterPrecision) -> Callable[..., Any]:
    """A ``forward`` that lets the module inside run with its adapted parameters not multiplied out.

    Args:
        cls: PEFT's class.
        precision: in which its adapters are to compute.
    """
    own = cls.forward

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        unknown = "adapter_names" in kwargs or cls.forward is not own
        found = REPLACED if unknown else choose_parameters(self, x, precision)

        if is_saved_by_hooks():
            return as_in_forward(self, found, partial(_run, cls, (self, x, args, kwargs)), _merge)
        return _run(cls, (self, x, args, kwargs), found)

    return forward


def _run(cls: type[nn.Module], call: tuple[Any, ...], found: Any) -> Any:
    """One call of a wrapper as it was chosen.

    No function within ``forward``: one that names itself would hold the input until the garbage collector comes.
    """
    module, x, args, kwargs = call
    if isinstance(found, Watched):
        again = partial(_run, cls, call)
        return watched(partial(again, REPLACED), partial(again, found.then), x.device)
    if isinstance(found, str):
        return cls.forward(module, x, *args, **kwargs)
    with _substituted(found.module, found.parameters):
        output = found.module(x, *args, **kwargs)
    _watch_merging(output, found)
    return output


@contextmanager
def _substituted(module: nn.Module, parameters: Sequence[AdaptedParameter]) -> Iterator[None]:
    """A module that finds what stands for its adapted parameters.

    In its dictionary, which Python looks into before it asks ``torch.nn.Module`` for a parameter. The parameters stay
    where they are kept.
    """
    state = module.__dict__
    for name, weight, adapters, swapped in parameters:
        factors = [StackAdapter(*adapter.factors(weight, swapped=swapped), adapter.scaling) for adapter in adapters]
        state[name] = AdaptedWeight(weight, factors)
    try:
        yield
    finally:
        for parameter in parameters:
            state.pop(parameter.name, None)


def _watch_merging(output: Any, found: AdaptedParameters) -> None:
    """Have the backward of an output fail if adapters are merged before it.

    W is kept for it, and PEFT changes W without autograd's notice. PEFT's own backward is of a copy of W.

    Raises:
        MergedInBetweenError: in that backward.
    """
    before, names = found.merged, ", ".join(parameter.name for parameter in found.parameters)

    def check(grad: Tensor) -> None:
        if found.merged != before:
            raise MergedInBetweenError(
                f"the adapters of {names} of a {type(found.module).__name__} were merged or unmerged after a forward "
                "and before its backward, which needs the weights as they were. Run the backward first, or leave "
                "experts as they are: patchkit.apply(model, experts=False, linear=False)."
            )

    for tensor in output if isinstance(output, (tuple, list)) else [output]:
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(check)  # type: ignore[no-untyped-call]


def _merge(then: Any, now: Any) -> Any:
    """What to make of a wrapper in a recomputation, see :mod:`patchkit.runtime.checkpointing`."""
    if then is None or isinstance(then, str):
        return THEN_CALLED
    return Watched(then) if is_for_hooks(now) else now
