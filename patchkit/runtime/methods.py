"""The methods that rewritten code calls.

Each is made for one class, from the names in its architecture and the order in which its source calls the projections
(the order of dropout draws, kept whenever modules are called one by one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.adapters.protocol import Reason
from patchkit.runtime import fused
from patchkit.runtime.before_down import Between, read_dropout
from patchkit.runtime.checkpointing import as_in_forward, is_saved_by_hooks, watched
from patchkit.runtime.choice import Choice, choose_mlp, choose_shared
from patchkit.runtime.levels import Ready, adapted, examine, input_of
from patchkit.runtime.limit import read_limit
from patchkit.runtime.loss import make_apply_loss
from patchkit.runtime.memory import fitting, memory_of
from patchkit.runtime.precision import AdapterPrecision
from patchkit.runtime.replay import Watched, merge_choices, merge_readings, replay


def submodule(module: nn.Module, name: str) -> Any:
    """``getattr(module, name)``, past the detours of ``nn.Module`` where it is a submodule as usual.

    What the class has to say of that name is the concern of :mod:`patchkit.runtime.dispatch`.
    """
    state = module.__dict__
    found: nn.Module | None = state["_modules"].get(name)
    # A block has neither parameters nor buffers of its own, as a rule; they are found before a submodule.
    if found is None or name in state or state["_parameters"] or state["_buffers"]:
        return getattr(module, name)
    return found


def _call(module: nn.Module, x: Tensor, reading: Ready | Reason) -> Tensor:
    """One projection alone: fused where it has an adapter that is understood, else the module itself."""
    if isinstance(reading, Ready) and adapted(reading):
        return fused.lora_linear(x, *reading)
    if isinstance(reading, Watched):
        ready: Ready = reading.then
        return watched(partial(module, x), lambda: fused.lora_linear(x, *ready), x.device)
    return module(x)  # type: ignore[no-any-return]


def _apply_alone(module: nn.Module, x: Tensor, precision: AdapterPrecision) -> Tensor:
    given = input_of(x, precision)
    reading = given if isinstance(given, str) else examine(module, given)
    if is_saved_by_hooks():
        return as_in_forward(module, reading, partial(_call, module, x), merge_readings)
    return _call(module, x, reading)


def make_apply_linear(precision: AdapterPrecision) -> Callable[[Any, nn.Module, Tensor], Tensor]:
    """The method ``apply_linear(module, x)``: ``module(x)``, fused if it is a projection with an adapter."""

    def apply_linear(self: Any, module: nn.Module, x: Tensor) -> Tensor:
        return _apply_alone(module, x, precision)

    return apply_linear


def make_apply_o(o: str, precision: AdapterPrecision) -> Callable[[Any, Tensor], Tensor]:
    """The method ``apply_o(x)`` of a class whose output projection is the attribute ``o``."""

    def apply_o(self: Any, x: Tensor) -> Tensor:
        return _apply_alone(submodule(self, o), x, precision)

    return apply_o


def make_apply_qkv(
    names: tuple[str, str, str], order: Sequence[str], precision: AdapterPrecision
) -> Callable[[Any, Tensor], tuple[Tensor, ...]]:
    """The method ``apply_qkv(x)`` of a class.

    Args:
        names: attribute names of the query, key and value projections.
        order: the same names in the order in which upstream calls them.
        precision: see :data:`patchkit.runtime.precision.AdapterPrecision`; likewise below.

    Returns:
        A method from ``[..., hidden]`` to query, key and value, in this order.
    """
    # Dropout is drawn in the order of calls.
    places = tuple(order.index(name) for name in names)
    apply_shared = make_apply_shared(precision)

    def apply_qkv(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        outputs = apply_shared(self, x, *[submodule(self, name) for name in order])
        return tuple([outputs[place] for place in places])

    return apply_qkv


def make_apply_shared(precision: AdapterPrecision) -> Callable[..., tuple[Tensor, ...]]:
    """The method ``apply_shared(x, *modules)``: ``tuple(module(x) for module in modules)``, fused as q, k and v are."""

    def apply_shared(self: Any, x: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
        choice = choose_shared(modules, input_of(x, precision))
        if is_saved_by_hooks():
            return as_in_forward(self, choice, partial(replay, run, x, modules, choice), merge_choices)
        return run(x, modules, choice)

    def run(x: Tensor, modules: Sequence[nn.Module], choice: Choice) -> tuple[Tensor, ...]:
        if choice.precision is not None:
            projections = [reading.projection for reading in choice.readings]  # type: ignore[union-attr]
            return fused.lora_projections(x, projections, choice.precision)
        return tuple([_call(module, x, reading) for module, reading in zip(modules, choice.readings, strict=True)])

    return apply_shared


def make_apply_mlp(
    inputs: Sequence[str],
    down: str,
    activation: str,
    order: Sequence[str],
    precision: AdapterPrecision,
    *,
    gate_first: bool,
    limited: bool = False,
    memory: str | None = None,
) -> Callable[[Any, Tensor], Tensor]:
    """The method ``apply_mlp(x)`` of a class that computes ``down(dropout(activation(gate(x)) * up(x)))``.

    What stands in between is said by keyword arguments of each call: the limit of gate and up, dropout, what it is
    given besides, and for which dtypes of down's weight the hidden state is not cast to that dtype.

    Args:
        inputs: attribute names of the gate and up projections, or of the one that yields both.
        down: attribute name of the down projection.
        activation: attribute name of the activation; where it is a function, what the source calls it. The function
            itself is then the second argument of each call.
        order: the names of these modules in the order in which upstream calls them.
        gate_first: for one joint projection: whether the first half of its output is the gate.
        limited: whether gate and up are clamped, by a limit that is said at each call.
        memory: see :mod:`patchkit.runtime.memory`; likewise below.
    """
    saving = memory_of(memory)
    calls = tuple(inputs.index(name) for name in order if name in inputs)
    # An activation may draw, and hooks may watch: it runs between the same calls as upstream.
    before = sum(name in inputs for name in order[: order.index(activation)])
    called_gate_first = gate_first if len(inputs) == 1 else calls[0] == 0

    def run(x: Tensor, all_modules: Sequence[Any], choice: Choice) -> Tensor:
        *modules, down_module, activation_module, between, limit = all_modules
        if choice.precision is not None and choice.activation is not None:
            projections = [reading.projection for reading in choice.readings]  # type: ignore[union-attr]
            return fused.lora_gated_mlp(
                x,
                [projections[i] for i in calls],
                projections[-1],
                choice.activation,
                choice.precision,
                gate_first=called_gate_first,
                dropout=choice.dropout,
                limit=choice.limit,
                memory=saving and fitting(saving, choice.readings)[0],
            )
        outputs = {i: _call(modules[i], x, choice.readings[i]) for i in calls[:before]}
        if len(inputs) == 1:
            gate, outputs[1] = _halves(outputs[0], gate_first)
        else:
            gate = outputs[0]
        activated = activation_module(gate.clamp(max=limit) if limited else gate)
        outputs |= {i: _call(modules[i], x, choice.readings[i]) for i in calls[before:]}
        hidden = activated * (outputs[1].clamp(min=-limit, max=limit) if limited else outputs[1])
        hidden = hidden if between is None else between(hidden)
        return down_module(hidden) if choice.level == "upstream" else _apply_alone(down_module, hidden, precision)

    return _mlp_method(inputs, down, activation, precision, run, gated=True, limited=limited)


def _halves(output: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    """Gate and up of what one joint projection gives."""
    first, second = output.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


def make_apply_ungated_mlp(
    up: str, down: str, activation: str, precision: AdapterPrecision, *, memory: str | None = None
) -> Callable[[Any, Tensor], Tensor]:
    """The method ``apply_mlp(x)`` of a class that computes ``down(dropout(activation(up(x))))``.

    Args:
        up: attribute name of the up projection.
        down: attribute name of the down projection.
        activation: see :func:`make_apply_mlp`.
        precision: see :data:`patchkit.runtime.precision.AdapterPrecision`.
        memory: see :func:`make_apply_mlp`.
    """
    saving = memory_of(memory)

    def run(x: Tensor, all_modules: Sequence[Any], choice: Choice) -> Tensor:
        up_module, down_module, activation_module, between, _ = all_modules
        if choice.precision is not None and choice.activation is not None:
            first, last = [reading.projection for reading in choice.readings]  # type: ignore[union-attr]
            return fused.lora_mlp(
                x,
                first,
                last,
                choice.activation,
                choice.precision,
                dropout=choice.dropout,
                memory=saving and fitting(saving, choice.readings)[0],
            )
        hidden = activation_module(_call(up_module, x, choice.readings[0]))
        hidden = hidden if between is None else between(hidden)
        return down_module(hidden) if choice.level == "upstream" else _apply_alone(down_module, hidden, precision)

    return _mlp_method((up,), down, activation, precision, run, gated=False)


def _mlp_method(
    inputs: Sequence[str],
    down: str,
    activation: str,
    precision: AdapterPrecision,
    run: Callable[[Tensor, Sequence[Any], Choice], Tensor],
    *,
    gated: bool,
    limited: bool = False,
) -> Callable[..., Tensor]:
    """The method ``apply_mlp``: it finds the modules, chooses the level, and has ``run`` compute.

    ``run`` is given the projections, the activation, what stands before down (None for nothing), and the limit.
    """

    def apply_mlp(
        self: Any,
        x: Tensor,
        function: Callable[[Tensor], Tensor] | None = None,
        *,
        dropout: Any = None,
        cast_unless: Sequence[torch.dtype] | None = None,
        limit: Any = None,
        **how: Any,
    ) -> Tensor:
        modules = tuple([submodule(self, name) for name in inputs])
        activation_module = submodule(self, activation) if function is None else function
        down_module = submodule(self, down)
        choice = choose_mlp(
            modules,
            down_module,
            activation_module,
            x,
            input_of(x, precision),
            gated=gated,
            dropout=0.0 if dropout is None else read_dropout(dropout, how),
            casts=cast_unless is not None,
            limit=read_limit(limit) if limited else None,
        )
        between = None if dropout is cast_unless is None else Between(down_module, dropout, how, cast_unless)
        all_modules: tuple[Any, ...] = (*modules, down_module, activation_module, between, limit)
        if is_saved_by_hooks():
            again: Callable[[Any], Tensor] = partial(replay, run, x, all_modules, choice)
            return as_in_forward(self, choice, again, merge_choices)
        return run(x, all_modules, choice)

    return apply_mlp


METHODS: dict[str, Callable[..., Callable[..., Any]]] = {
    "apply_linear": make_apply_linear,
    "apply_o": make_apply_o,
    "apply_qkv": make_apply_qkv,
    "apply_shared": make_apply_shared,
    "apply_mlp": make_apply_mlp,
    "apply_loss": make_apply_loss,
    "apply_ungated_mlp": make_apply_ungated_mlp,
}
"""What makes each method, by the name under which rewritten code calls it, or that a rule gives as its ``maker``."""
