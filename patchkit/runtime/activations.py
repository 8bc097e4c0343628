"""Which function an activation module computes, read from the module itself and never from a config.

"gelu" names two different functions: the exact one (erf) and its tanh approximation.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import nn
from transformers import activations as upstream

from patchkit.adapters.formula import Formula
from patchkit.adapters.peft import FORMULA
from patchkit.adapters.protocol import Reason, interference
from patchkit_kernels.ops.activations import Activation

_SILU = {nn.SiLU, getattr(upstream, "SiLUActivation", nn.SiLU)}
# Before transformers 5 the tanh form was PytorchGELUTanh; where both names exist they are one class.
_GELU_TANH = {
    upstream.NewGELUActivation,
    upstream.FastGELUActivation,
    getattr(upstream, "GELUTanh", upstream.NewGELUActivation),
    getattr(upstream, "PytorchGELUTanh", upstream.NewGELUActivation),
}
_NAMES: dict[type[nn.Module], Activation] = {
    **dict.fromkeys(_SILU, "silu"),
    **dict.fromkeys(_GELU_TANH, "gelu_tanh"),
    upstream.GELUActivation: "gelu_erf",
    nn.GELU: "gelu_erf",  # or the other, which it says itself
}
_FORMULAS = {
    kind: Formula({kind: "forward _gelu_python _gelu_tanh_python", F: "silu gelu"}, after=FORMULA) for kind in _NAMES
}
_FUNCTION = Formula({F: "silu"})
_NOT_FUSED: Reason = "it is not fused"


def read_activation(module: object) -> Activation | None:
    """The name of the function, or None if it is not one that is fused, or must be called for another reason."""
    kind: Any = type(module)
    formula = _FORMULAS.get(kind)
    if formula is None:  # maybe the function itself
        return "silu" if unfit_activation(module) is None else None
    state = module.__dict__
    # What unfit_activation looks at, without the calls: this runs at every call of an MLP.
    if (
        (state["_forward_pre_hooks"] or state["_forward_hooks"])
        or (state["_backward_hooks"] or state["_backward_pre_hooks"])
        or ("forward" in state or "_call_impl" in state or "_compiled_call_impl" in state)
        or ("act" in state or state.get("inplace"))
        or not formula.held
    ) and unfit_activation(module) is not None:
        return None
    if kind is nn.GELU and module.approximate == "tanh":  # type: ignore[attr-defined]
        return "gelu_tanh"
    return _NAMES[kind]


def unfit_activation(module: object) -> Reason | None:
    """Why an activation must be called, or None."""
    kind: Any = type(module)
    formula = _FORMULAS.get(kind)
    if formula is None:
        return _FUNCTION.replaced() if module is F.silu else _NOT_FUSED
    reason = interference(module) or formula.replaced()  # type: ignore[arg-type]
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
