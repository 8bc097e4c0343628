"""Readers of torchtune's ``LoRALinear`` and ``DoRALinear``.

Source of the semantics: ``torchtune/modules/peft/lora.py`` and ``dora.py`` of version 0.6. Both hold W and b themselves
and A and B as linear layers. With l = s d(x) A^T B^T they compute, without any cast::

    LoRALinear    r + l              r = x W^T + b
    DoRALinear    r + (g - 1) r + g l    g = m / |W + s B A|, the norm a constant to autograd

The latter is PEFT's formula only where nothing is dropped (PEFT's r is then that of d(x)) and there is no b (which
PEFT does not scale). Elsewhere torchtune's code runs. It does under autocast too: g is not cast there, which makes the
output wider than autocast's dtype.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules.peft import DoRALinear, LoRALinear

from patchkit.adapters.formula import Formula
from patchkit.adapters.linear import LOOKED_UP, weight_and_bias
from patchkit.adapters.protocol import (
    Library,
    Reason,
    autocasts,
    drop_probability,
    interference,
    lacks_cast,
    unfit_scaling,
)
from patchkit_kernels.lora.projection import Adapter, Projection

_ATTRIBUTES = "weight bias lora_a lora_b dropout"
_FORMULA = Formula(
    {
        LoRALinear: "forward",
        DoRALinear: "forward _get_weight_norm",
        nn.Linear: "forward",
        nn.Dropout: "forward",
        nn.Identity: "forward",
        F: "linear dropout",
    },
    {LoRALinear: _ATTRIBUTES, DoRALinear: f"{_ATTRIBUTES} magnitude"},
)
_LOOKED_UP = ("lora_a", "lora_b", "dropout", "magnitude", "_get_weight_norm")


def read_lora_linear(module: nn.Module) -> Projection | Reason:
    """The tensors of a ``LoRALinear``, or why it must be called instead."""
    projection = _read_base(module)
    state = module.__dict__
    if isinstance(projection, str) or state["disabled"]:
        return projection
    return _with_adapter(state, projection, state["alpha"] / state["rank"])


def read_dora_linear(module: nn.Module) -> Projection | Reason:
    """The tensors of a ``DoRALinear``, or why it must be called instead."""
    base = _read_base(module)
    state = module.__dict__
    if isinstance(base, str) or state["disabled"]:
        return base
    projection = _with_adapter(state, base, state["scaling"])
    if isinstance(projection, str):
        return projection
    adapter, magnitude = projection.adapters[0], state["_parameters"].get("magnitude")
    if magnitude is None:
        return "its magnitude is not a parameter"
    if adapter.dropout:
        return "torchtune's DoRA with dropout: the base product is of the whole input"
    if projection.bias is not None:
        return "torchtune's DoRA scales the bias too"
    if autocasts(magnitude.device.type):
        return "torchtune's DoRA does not cast its output under autocast"
    if magnitude.dtype != adapter.lora_a.dtype:
        return "its magnitude has another dtype than its weight"
    return projection._replace(adapters=(adapter._replace(magnitude=magnitude),))


def _read_base(module: nn.Module) -> Projection | Reason:
    if module.__dict__["_quantize_base"]:
        return "its base weight is quantised (quantize_base)"
    found = _FORMULA.replaced() or weight_and_bias(module)
    if any(name in module.__dict__ for name in _LOOKED_UP):
        return "A, B or dropout was replaced on the instance"
    return found if isinstance(found, str) else Projection(*found)


def _with_adapter(state: dict[str, Any], projection: Projection, scaling: float) -> Projection | Reason:
    modules = state["_modules"]
    lora_a, lora_b, dropout = modules["lora_a"], modules["lora_b"], modules["dropout"]
    if type(lora_a) is not nn.Linear or type(lora_b) is not nn.Linear:
        return "its adapter is not made of two linear layers"
    reason = interference(lora_a, LOOKED_UP) or interference(lora_b, LOOKED_UP) or interference(dropout)
    if reason is not None:
        return f"A, B or dropout: {reason}"
    parameters_a, parameters_b = lora_a.__dict__["_parameters"], lora_b.__dict__["_parameters"]
    weight_a, weight_b = parameters_a.get("weight"), parameters_b.get("weight")
    if weight_a is None or weight_b is None or (parameters_a.get("bias"), parameters_b.get("bias")) != (None, None):
        return "its A or B is not one matrix"
    weight = projection.weight
    assert isinstance(weight, Tensor)  # narrows the type: _read_base gives no other
    if lacks_cast(weight, projection.bias, weight_a, weight_b):
        return "its weight, bias, A and B differ in dtype, and torchtune casts nothing"
    reason = unfit_scaling(scaling)
    if reason is not None:
        return reason
    probability = drop_probability(dropout)
    if isinstance(probability, str):
        return probability
    return projection._replace(adapters=(Adapter(weight_a, weight_b, scaling, dropout=probability),))


LIBRARY = Library(
    {LoRALinear: read_lora_linear, DoRALinear: read_dora_linear},
    (LoRALinear, DoRALinear),
    casts_input=False,
)
