"""The methods that rewritten code calls.

Each is made for one class, from the names in its architecture and the order in which its source calls the projections
(the order of dropout draws, kept whenever modules are called one by one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchkit.adapters.protocol import Reason, quick
from patchkit.runtime.activations import read_activation, unfit_activation
from patchkit.runtime.checkpointing import as_in_forward, is_saved_by_hooks, watched
from patchkit.runtime.levels import (
    GLOBAL_HOOK,
    Input,
    Level,
    Ready,
    adapted,
    common_precision,
    examine,
    input_of,
)
from patchkit.runtime.precision import AdapterPrecision
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_linear, lora_projections
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.ops.activations import Activation

NO_ADAPTER: Reason = "no active LoRA adapter"
NO_GRADIENT: Reason = "no adapter and no gradient: nothing to save"


class Choice(NamedTuple):
    """The level of a block for one call.

    Attributes:
        level: see :mod:`patchkit.runtime.levels`.
        readings: what was found of each projection, in the order of its names.
        precision: of the fused function, if ``level`` is fused.
        reason: why the block is not fused, where that is not the reason of a projection.
        activation: of a gated MLP, if it is one that is fused.
    """

    level: Level
    readings: tuple[Ready | Reason, ...]
    precision: Precision | None = None
    reason: Reason | None = None
    activation: Activation | None = None


def choose_shared(modules: Sequence[nn.Module], given: Input | Reason) -> Choice:
    """The level of projections that read the same input (q, k and v, or one alone)."""
    if isinstance(given, str):
        return Choice("upstream", (given,) * len(modules))
    readings, precision, with_adapter = _examine_all(modules, given)
    if not with_adapter:
        return quick(Choice, ("upstream", readings, None, NO_ADAPTER, None))
    if precision is None:
        found = common_precision(readings)
        if isinstance(found, str):
            return Choice("linear", readings, reason=found)
        precision = found
    return quick(Choice, ("fused", readings, precision, None, None))


def choose_mlp(
    inputs: Sequence[nn.Module], down: nn.Module, activation: object, x: Tensor, given: Input | Reason
) -> Choice:
    """The level of a gated MLP."""
    if isinstance(given, str):
        return Choice("upstream", (given,) * (len(inputs) + 1))
    readings, precision, with_adapter = _examine_all(inputs, given)
    # Down reads what gate and up yield, one joint projection both of them.
    dtype, width, same_width = given.dtype, 0, True
    for reading in readings:
        if type(reading) is Ready:
            own = reading.projection.weight.shape[0] * len(inputs) // 2
            same_width = same_width and width in (0, own)
            dtype, width = reading.precision.output, own
    features = width if width and same_width else _in_features(down)
    last = examine(down, quick(Input, (features, dtype, *given[2:])))
    readings += (last,)
    with_adapter = with_adapter or (type(last) is Ready and adapted(last))
    found = precision if type(last) is Ready and last.precision is precision else common_precision(readings)
    name = read_activation(activation)
    level: Level = "linear" if with_adapter else "upstream"
    if isinstance(found, str):
        return Choice(level, readings, reason=found)
    if not same_width:
        return Choice(level, readings, reason="gate and up differ in width")
    if name is None:
        why = unfit_activation(activation)
        return Choice(level, readings, reason=f"activation {type(activation).__qualname__}: {why}")
    if not with_adapter and not _wants_gradient(x, readings):
        return Choice("upstream", readings, reason=NO_GRADIENT)
    return quick(Choice, ("fused", readings, found, None, name))


def _in_features(module: nn.Module) -> int:
    name = "in_features" if hasattr(module, "in_features") else "in_dim"  # the latter is torchtune's
    found: int = getattr(module, name, -1)
    return found


def _examine_all(
    modules: Sequence[nn.Module], given: Input
) -> tuple[tuple[Ready | Reason, ...], Precision | None, bool]:
    """What is found of each, the precision of them all, and whether any has an adapter.

    The precision is None where they do not all have the same one at once, and :func:`common_precision` decides. In one
    look at each: they agree at most calls.
    """
    readings: list[Ready | Reason] = []
    common: Precision | None = None
    agreed, with_adapter = True, False
    for module in modules:
        reading = examine(module, given)
        readings.append(reading)
        if type(reading) is not Ready:
            agreed = False
            continue
        projection, precision = reading
        if projection.adapters:
            with_adapter = True
        if common is None:
            common = precision
        elif precision is not common:
            agreed = False
    return tuple(readings), common if agreed else None, with_adapter


def _wants_gradient(x: Tensor, readings: Sequence[Ready | Reason]) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad
        or any(isinstance(reading, Ready) and _trained(reading.projection.weight) for reading in readings)
    )


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


def _trained(weight: object) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad


def _call(module: nn.Module, x: Tensor, reading: Ready | Reason) -> Tensor:
    """One projection alone: fused where it has an adapter that is understood, else the module itself."""
    if isinstance(reading, Ready) and adapted(reading):
        return lora_linear(x, *reading)
    if isinstance(reading, Watched):
        ready: Ready = reading.then
        return watched(partial(module, x), lambda: lora_linear(x, *ready), x.device)
    return module(x)  # type: ignore[no-any-return]


class Watched(NamedTuple):
    """In a recomputation: what was computed fused in the forward, and now has to be called too, for a hook."""

    then: Any


THEN_CALLED: Reason = "it was called when this was run first"
_FOR_HOOKS = ("a forward hook is registered on it", "a backward hook is registered on it", GLOBAL_HOOK)


def is_for_hooks(reason: object) -> bool:
    """Whether nothing but a hook speaks against computing this. Hooks change nothing in what upstream saves."""
    return isinstance(reason, str) and reason.endswith(_FOR_HOOKS)


def merge_readings(then: Ready | Reason | None, now: Ready | Reason) -> Ready | Reason | Watched:
    """What to make of a projection in a recomputation."""
    if not (isinstance(then, Ready) and adapted(then)):
        return THEN_CALLED
    return Watched(then) if is_for_hooks(now) else now


def merge_choices(then: Choice | None, now: Choice) -> Choice | Watched:
    """What to make of a block in a recomputation."""
    if then is None:
        return Choice("upstream", (THEN_CALLED,) * len(now.readings))
    if then.precision is None:
        pairs = zip(then.readings, now.readings, strict=True)
        return Choice(then.level, tuple([merge_readings(*pair) for pair in pairs]))  # type: ignore[misc]
    # Where a projection cannot be read, what is said of the block follows from that.
    reasons: list[object] = [reading for reading in now.readings if isinstance(reading, str)] or [now.reason]
    return Watched(then) if now.precision is None and all(map(is_for_hooks, reasons)) else now


def replay(
    run: Callable[[Tensor, Sequence[nn.Module], Choice], Any],
    x: Tensor,
    modules: Sequence[nn.Module],
    now: Choice,
    merged: Choice | Watched,
) -> Any:
    """Run a block as :func:`merge_choices` decided."""
    if isinstance(merged, Watched):
        return watched(lambda: run(x, modules, now), lambda: run(x, modules, merged.then), x.device)
    return run(x, modules, merged)


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
    calls = tuple(names.index(name) for name in order)
    places = tuple(calls.index(i) for i in range(len(names)))

    def apply_qkv(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        modules = tuple([submodule(self, name) for name in names])
        choice = choose_shared(modules, input_of(x, precision))
        if is_saved_by_hooks():
            return as_in_forward(self, choice, partial(replay, run, x, modules, choice), merge_choices)
        return run(x, modules, choice)

    def run(x: Tensor, modules: Sequence[nn.Module], choice: Choice) -> tuple[Tensor, ...]:
        if choice.precision is not None:
            in_order = [choice.readings[i].projection for i in calls]  # type: ignore[union-attr]
            outputs = lora_projections(x, in_order, choice.precision)
            return tuple([outputs[place] for place in places])
        called_one_by_one = [_call(modules[i], x, choice.readings[i]) for i in calls]
        return tuple([called_one_by_one[place] for place in places])

    return apply_qkv


def make_apply_mlp(
    inputs: Sequence[str],
    down: str,
    activation: str,
    order: Sequence[str],
    precision: AdapterPrecision,
    *,
    gate_first: bool,
) -> Callable[[Any, Tensor], Tensor]:
    """The method ``apply_mlp(x)`` of a class that computes ``down(activation(gate(x)) * up(x))``.

    Args:
        inputs: attribute names of the gate and up projections, or of the one that yields both.
        down: attribute name of the down projection.
        activation: attribute name of the activation.
        order: the names of these modules in the order in which upstream calls them.
        gate_first: for one joint projection: whether the first half of its output is the gate.
    """
    calls = tuple(inputs.index(name) for name in order if name in inputs)
    # An activation may draw, and hooks may watch: it runs between the same calls as upstream.
    before = sum(name in inputs for name in order[: order.index(activation)])
    called_gate_first = gate_first if len(inputs) == 1 else calls[0] == 0

    def apply_mlp(self: Any, x: Tensor) -> Tensor:
        modules = tuple([submodule(self, name) for name in inputs])
        down_module, activation_module = submodule(self, down), submodule(self, activation)
        choice = choose_mlp(modules, down_module, activation_module, x, input_of(x, precision))
        all_modules = (*modules, down_module, activation_module)
        if is_saved_by_hooks():
            again: Callable[[Any], Tensor] = partial(replay, run, x, all_modules, choice)
            return as_in_forward(self, choice, again, merge_choices)
        return run(x, all_modules, choice)

    def run(x: Tensor, all_modules: Sequence[nn.Module], choice: Choice) -> Tensor:
        *modules, down_module, activation_module = all_modules
        if choice.precision is not None and choice.activation is not None:
            projections = [reading.projection for reading in choice.readings]  # type: ignore[union-attr]
            return lora_gated_mlp(
                x,
                [projections[i] for i in calls],
                projections[-1],
                choice.activation,
                choice.precision,
                gate_first=called_gate_first,
            )
        outputs = {i: _call(modules[i], x, choice.readings[i]) for i in calls[:before]}
        if len(inputs) == 1:
            gate, outputs[1] = _halves(outputs[0], gate_first)
        else:
            gate = outputs[0]
        activated = activation_module(gate)
        outputs |= {i: _call(modules[i], x, choice.readings[i]) for i in calls[before:]}
        hidden = activated * outputs[1]
        return down_module(hidden) if choice.level == "upstream" else _apply_alone(down_module, hidden, precision)

    return apply_mlp


def _halves(output: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    """Gate and up of what one joint projection gives."""
    first, second = output.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


METHODS: dict[str, Callable[..., Callable[..., Any]]] = {
    "apply_linear": make_apply_linear,
    "apply_o": make_apply_o,
    "apply_qkv": make_apply_qkv,
    "apply_mlp": make_apply_mlp,
}
"""What makes each method, by the name under which rewritten code calls it."""
