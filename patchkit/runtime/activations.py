"""Which function an activation module computes, read from the module itself and never from a config.

"gelu" names two different functions: the exact one (erf) and its tanh approximation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import activations as upstream

from patchkit.adapters.formula import Formula, Namespace
from patchkit.adapters.peft import FORMULA
from patchkit.adapters.protocol import Reason, interference
from patchkit_kernels.ops.activations import Activation


class _Read(NamedTuple):
    """What a kind of module computes, and the functions which its ``forward`` looks up to do so."""

    name: Activation
    formula: Formula


def _classes(
    name: Activation, kinds: Iterable[type[nn.Module]], functions: dict[Namespace, str]
) -> dict[type[nn.Module], _Read]:
    """The classes of one activation, where their ``forward`` calls no function but their own and these."""
    own = "forward _gelu_python _gelu_tanh_python"
    return {kind: _Read(name, Formula({kind: own, **functions}, after=FORMULA)) for kind in kinds}


_SILU = (nn.SiLU, getattr(upstream, "SiLUActivation", nn.SiLU))
# FastGELU rounds sqrt(2 / pi) to ten digits, a relative difference of 4e-12. Before transformers 5 the tanh form was
# PytorchGELUTanh; where both names exist they are one class.
_GELU_TANH = (
    upstream.NewGELUActivation,
    upstream.FastGELUActivation,
    getattr(upstream, "GELUTanh", upstream.NewGELUActivation),
    getattr(upstream, "PytorchGELUTanh", upstream.NewGELUActivation),
)
_MODULES: dict[type[nn.Module], _Read] = {
    **_classes("silu", _SILU, {F: "silu"}),
    **_classes("gelu_tanh", _GELU_TANH, {F: "gelu", torch: "tanh pow"}),
    **_classes("gelu_erf", (upstream.GELUActivation,), {F: "gelu", torch: "erf"}),
    **_classes("gelu_erf", (nn.GELU,), {F: "gelu"}),  # or the other, which it says itself
    **_classes("relu", (nn.ReLU,), {F: "relu"}),
    **_classes("relu2", (upstream.ReLUSquaredActivation,), {F: "relu", torch: "square"}),
    **_classes("quick_gelu", (upstream.QuickGELUActivation,), {torch: "sigmoid"}),
    **_classes("sigmoid", (nn.Sigmoid,), {torch: "sigmoid"}),
}


class _Function(NamedTuple):
    """A function that a block may hold in the place of a module: where it stands, and what it computes."""

    owner: Namespace
    attribute: str
    read: _Read


_HELD: tuple[tuple[Namespace, str, Activation], ...] = (
    (F, "silu", "silu"),
    (F, "gelu", "gelu_erf"),
    (F, "relu", "relu"),
    (torch, "relu", "relu"),
    (torch, "sigmoid", "sigmoid"),
)
_FUNCTIONS = tuple(
    [_Function(owner, attribute, _Read(name, Formula({owner: attribute}))) for owner, attribute, name in _HELD]
)
_NOT_FUSED: Reason = "it is not fused"


def read_activation(module: object) -> Activation | None:
    """The name of the function, or None if it is not one that is fused, or must be called for another reason."""
    kind: Any = type(module)
    read = _MODULES.get(kind)
    if read is None:
        read = _function(module)
        return None if read is None or read.formula.replaced() is not None else read.name
    state = module.__dict__
    # What unfit_activation looks at, without the calls: this runs at every call of an MLP.
    if (
        (state["_forward_pre_hooks"] or state["_forward_hooks"])
        or (state["_backward_hooks"] or state["_backward_pre_hooks"])
        or ("forward" in state or "_call_impl" in state or "_compiled_call_impl" in state)
        or ("act" in state or state.get("inplace"))
        or not read.formula.held
    ) and unfit_activation(module) is not None:
        return None
    if kind is nn.GELU and module.approximate == "tanh":  # type: ignore[attr-defined]
        return "gelu_tanh"
    return read.name


def _function(given: object) -> _Read | None:
    """What a function computes, if it is one that is fused."""
    for owner, attribute, read in _FUNCTIONS:
        if given is getattr(owner, attribute, None):
            return read
    return None


def unfit_activation(module: object) -> Reason | None:
    """Why an activation must be called, or None."""
    kind: Any = type(module)
    read = _MODULES.get(kind)
    if read is None:
        read = _function(module)
        return _NOT_FUSED if read is None else read.formula.replaced()
    reason = interference(module) or read.formula.replaced()  # type: ignore[arg-type]
    if reason is not None:
        return reason
    state = module.__dict__
    if state.get("inplace"):
        return "it works in place"
    if "act" in state and not _is_own_act(kind, state["act"]):
        return "its act is a function of its own"
    return None


def _is_own_act(kind: type[nn.Module], act: Any) -> bool:
    """Whether this is what transformers' GELU modules call: torch's function, or a method that computes the same."""
    function = getattr(act, "__func__", None)
    if kind is upstream.GELUActivation:
        return act is F.gelu or (function is not None and function is kind._gelu_python)
    if isinstance(act, functools.partial):
        return act.func is F.gelu and not act.args and act.keywords == {"approximate": "tanh"}
    return function is not None and function is getattr(kind, "_gelu_tanh_python", None)
