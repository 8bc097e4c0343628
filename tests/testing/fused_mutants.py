"""Faults for the fused functions themselves: what an error in a formula or a kernel would do, one at a time.

The rewritten code, the choice of level and the readers stay as they are. A fault is put around the functions that the
runtime calls, so it does not depend on how they are written inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from patchkit.runtime import fused
from patchkit_kernels.lora.projection import Adapter, Projection, dense_weight

FUSED = ("lora_linear", "lora_projections", "lora_gated_mlp")

Fused = Callable[..., "Tensor | tuple[Tensor, ...]"]
Fault = Callable[..., "Tensor | tuple[Tensor, ...]"]
"""``fault(function, x, *arguments)`` computes what ``function(x, *arguments)`` should, wrongly."""


@contextmanager
def injected(fault: Fault, only: tuple[str, ...] = FUSED):
    """Let the runtime call the fault in place of its fused functions. Yields how often each was called."""
    calls: dict[str, int] = {}
    originals = {name: vars(fused)[name] for name in only}
    for name, function in originals.items():
        setattr(fused, name, _faulty(function, fault, name, calls))
    try:
        yield calls
    finally:
        for name, function in originals.items():
            setattr(fused, name, function)


def _faulty(function: Fused, fault: Fault, name: str, calls: dict[str, int]) -> Fused:
    def faulty(x, *arguments, **options):
        calls[name] = calls.get(name, 0) + 1
        return fault(lambda x, *others: function(x, *others, **options), x, *arguments)

    return faulty


# --- what faults are made of ----------------------------------------------------------------------------------------


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def scale_gradient(tensor, factor):
    """The same tensor, whose gradient is multiplied."""
    return _ScaledGradient.apply(tensor, factor)


def edit(arguments, kind, change):
    """The arguments with every projection or adapter in them changed."""
    if isinstance(arguments, kind):
        return change(arguments)
    if isinstance(arguments, Projection):
        return arguments._replace(adapters=edit(arguments.adapters, kind, change))
    if type(arguments) in (tuple, list):
        return type(arguments)(edit(one, kind, change) for one in arguments)
    return arguments


def on_adapters(change):
    """A fault that changes the adapters."""
    return lambda function, x, *arguments: function(x, *edit(arguments, Adapter, change))


def on_projections(change):
    """A fault that changes the projections."""
    return lambda function, x, *arguments: function(x, *edit(arguments, Projection, change))


def combined(first, *others):
    """Adds outputs, be they one tensor or several."""
    if isinstance(first, Tensor):
        return sum(others, first)
    return tuple(sum(rest, one) for one, *rest in zip(first, *others, strict=True))


def times(outputs, factor):
    return outputs * factor if isinstance(outputs, Tensor) else tuple(one * factor for one in outputs)


def constant(outputs):
    return outputs.detach() if isinstance(outputs, Tensor) else tuple(one.detach() for one in outputs)


def bare(projection):
    return projection._replace(adapters=())


# --- faults ---------------------------------------------------------------------------------------------------------


def scale_missing_in_forward(function, x, *arguments):
    """Values without the scale, gradients with it."""
    wrong = on_adapters(lambda adapter: adapter._replace(scaling=1.0))(function, x, *arguments)
    right = function(x, *arguments)
    return combined(constant(wrong), right, times(constant(right), -1))


def lora_term_missing_from_dx(function, x, *arguments):
    """dX = dY W alone; every other gradient is right. For functions that are linear in x."""
    base, frozen = on_projections(bare)(function, x, *arguments), x.detach()
    return combined(base, function(frozen, *arguments), times(on_projections(bare)(function, frozen, *arguments), -1))


def base_term_missing_from_dx(function, x, *arguments):
    """dX = s dY B A alone."""
    frozen = on_projections(bare)(function, x.detach(), *arguments)
    return combined(function(x, *arguments), times(on_projections(bare)(function, x, *arguments), -1), frozen)


def swaps_k_and_v(function, x, *arguments):
    q, k, v = function(x, *arguments)
    return q, v, k


def erf_for_tanh(function, x, *arguments):
    return function(x, *("gelu_erf" if argument == "gelu_tanh" else argument for argument in arguments))


def swaps_gate_and_up(function, x, inputs, *arguments):
    return function(x, list(inputs)[::-1], *arguments)


def second_projection_without_adapter(function, x, inputs, *arguments):
    first, second, *rest = inputs
    return function(x, [first, bare(second), *rest], *arguments)


def shares_dropout_mask(function, x, projections, precision):
    """Each projection draws from the same state of the generator."""
    state = torch.get_rng_state()
    outputs = []
    for projection in projections:
        torch.set_rng_state(state)
        outputs += function(x, [projection], precision)
    return tuple(outputs)


def draws_in_another_order(function, x, projections, precision):
    return tuple(function(x, list(projections)[::-1], precision))[::-1]


def _norm(projection, adapter):
    product = adapter.lora_b @ adapter.lora_a
    return torch.linalg.vector_norm(dense_weight(projection) + adapter.scaling * product, dim=1)


def _with_norms(factor):
    """Multiplies each magnitude, as another norm in the denominator would."""

    def change(projection):
        adapters = tuple(
            adapter._replace(magnitude=adapter.magnitude * factor(projection, adapter))
            for adapter in projection.adapters
        )
        return projection._replace(adapters=adapters)

    return on_projections(change)


def stale_norm():
    """The norm of the weights as they were at the first call."""
    first: dict[int, Tensor] = {}

    def factor(projection, adapter):
        now = _norm(projection, adapter).detach()
        return now / first.setdefault(id(adapter.lora_b), now)

    return _with_norms(factor)


def norm_with_gradient(function, x, *arguments):
    """The norm is a constant to autograd (Liu et al. 2024, section 4.3); here it is not."""

    def factor(projection, adapter):
        norm = _norm(projection, adapter)
        return norm.detach() / norm

    return _with_norms(factor)(function, x, *arguments)


def gradient_of(field, factor):
    """The gradient of one tensor of every adapter, multiplied by ``factor(adapter)``."""
    return on_adapters(
        lambda adapter: adapter._replace(**{field: scale_gradient(getattr(adapter, field), factor(adapter))})
    )


def dropped(field):
    return on_adapters(lambda adapter: adapter._replace(**{field: None}))


def bias_without_gradient(projection):
    return projection._replace(bias=None if projection.bias is None else scale_gradient(projection.bias, 0.0))


SHARED, ALONE, MLP = ("lora_projections",), ("lora_linear",), ("lora_gated_mlp",)

MUTANTS = {
    # name: (tiny model, LoRA configuration, fault, functions, a check that must fail)
    "scale missing": ("llama", {}, on_adapters(lambda a: a._replace(scaling=1.0)), FUSED, "forward_backward"),
    "scale missing in forward": ("llama", {}, scale_missing_in_forward, FUSED, "forward_backward"),
    "scale applied twice": ("llama", {}, on_adapters(lambda a: a._replace(scaling=a.scaling**2)), FUSED, "eval"),
    "LoRA term missing": ("llama", {}, on_projections(bare), FUSED, "forward_backward"),
    "LoRA term missing from dX of q/k/v": ("llama", {}, lora_term_missing_from_dx, SHARED, "forward_backward"),
    "LoRA term missing from dX of o": ("llama", {}, lora_term_missing_from_dx, ALONE, "forward_backward"),
    "base term missing from dX": ("llama", {}, base_term_missing_from_dx, SHARED, "forward_backward"),
    "dX doubled": ("llama", {}, lambda f, x, *a: f(scale_gradient(x, 2.0), *a), MLP, "forward_backward"),
    "dX zero": ("llama", {}, lambda f, x, *a: f(scale_gradient(x, 0.0), *a), ALONE, "forward_backward"),
    "dA without scale": ("llama", {}, gradient_of("lora_a", lambda a: 1 / a.scaling), FUSED, "forward_backward"),
    "dA zero": ("llama", {}, gradient_of("lora_a", lambda a: 0.0), FUSED, "forward_backward"),
    "dA of another sign": ("llama", {}, gradient_of("lora_a", lambda a: -1.0), MLP, "forward_backward"),
    "dB without scale": ("llama", {}, gradient_of("lora_b", lambda a: 1 / a.scaling), FUSED, "forward_backward"),
    "dB zero": ("llama", {}, gradient_of("lora_b", lambda a: 0.0), ALONE, "forward_backward"),
    "k and v swapped": ("llama", {}, swaps_k_and_v, SHARED, "forward_backward"),
    "gate and up swapped": ("llama", {}, swaps_gate_and_up, MLP, "forward_backward"),
    "up without adapter": ("llama", {}, second_projection_without_adapter, MLP, "no_grad"),
    "erf-GELU for tanh-GELU": ("gemma3", {}, erf_for_tanh, MLP, "forward_backward"),
    "a bias dropped": ("qwen2", {}, on_projections(lambda p: p._replace(bias=None)), SHARED, "generate"),
    "a bias without gradient": ("qwen2", {"bias": "all"}, on_projections(bias_without_gradient), SHARED, "forward_backward"),
    "bias of B dropped": ("llama", {"lora_bias": True}, dropped("bias"), FUSED, "forward_backward"),
    "second adapter ignored": (
        "llama", {}, on_projections(lambda p: p._replace(adapters=p.adapters[:1])), FUSED, "adapter_switching",
    ),
    "shared dropout mask": ("llama", {}, shares_dropout_mask, SHARED, "dropout"),
    "dropout drawn in another order": ("llama", {}, draws_in_another_order, SHARED, "dropout"),
    "dropout left out": ("llama", {}, on_adapters(lambda a: a._replace(dropout=0.0)), FUSED, "dropout"),
    "dropout without rescaling": (
        "llama", {}, on_adapters(lambda a: a._replace(scaling=a.scaling * (1 - a.dropout))), FUSED, "dropout",
    ),
    "magnitude ignored": ("llama", {"use_dora": True}, dropped("magnitude"), FUSED, "forward_backward"),
    "magnitude without gradient": (
        "llama", {"use_dora": True}, gradient_of("magnitude", lambda a: 0.0), FUSED, "forward_backward",
    ),
    "stale norm": ("llama", {"use_dora": True}, stale_norm(), FUSED, "weight_updates"),
    "norm with gradient": ("llama", {"use_dora": True}, norm_with_gradient, FUSED, "forward_backward"),
}  # fmt: skip


def signatures():
    """The parameters of the fused functions, which the faults count on."""
    return {name: list(inspect.signature(vars(fused)[name]).parameters) for name in FUSED}
