"""Reader of PEFT's ``lora.Linear``: plain LoRA with one active adapter.

Source of the semantics: ``peft/tuners/lora/layer.py``, ``Linear.forward``. What it does beyond
``base(x) + lora_B(lora_A(x)) * scaling`` is recognised here and left to PEFT, with the reason.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from patchkit.adapters.linear import read_linear
from patchkit.adapters.protocol import Reason, interference
from patchkit_kernels.projection import Projection


def read_lora_linear(module: nn.Module) -> Projection | Reason:
    """The tensors of a PEFT ``lora.Linear``, or why it must be called instead."""
    reason = interference(module)
    if reason is not None:
        return reason
    # Instance dictionaries are read directly: nn.Module's attribute access costs more than all the checks here.
    state: dict[str, Any] = module.__dict__
    modules = state["_modules"]
    if state["_disable_adapters"]:
        return "its adapters are disabled"
    if state["merged_adapters"]:
        return "its adapters are merged"
    base = modules["base_layer"]
    if type(base) is not nn.Linear:
        return f"its base layer is a {type(base).__module__}.{type(base).__qualname__}"
    projection = read_linear(base)
    if isinstance(projection, str):
        return f"base layer: {projection}"
    available = modules["lora_A"].__dict__["_modules"]
    chosen: Any = module._active_adapter  # PEFT keeps one name or a list of names
    active = [name for name in ([chosen] if isinstance(chosen, str) else chosen) if name in available]
    if not active:
        return projection
    if len(active) > 1:
        return "several adapters are active"
    return _with_adapter(state, modules, active[0], projection)


def _with_adapter(state: dict[str, Any], modules: dict[str, Any], name: str, base: Projection) -> Projection | Reason:
    if name in state["lora_variant"]:
        return f"LoRA variant {type(state['lora_variant'][name]).__name__}"
    if not state["cast_input_dtype_enabled"] or state["fan_in_fan_out"]:
        return "its input is not cast, or its weight is transposed"
    dropout = modules["lora_dropout"].__dict__["_modules"][name]
    if type(dropout) is nn.Dropout:
        if dropout.training and dropout.p:
            return "lora_dropout is active"
    elif type(dropout) is not nn.Identity:
        return f"its dropout is a {type(dropout).__qualname__}"
    lora_a = modules["lora_A"].__dict__["_modules"][name]
    lora_b = modules["lora_B"].__dict__["_modules"][name]
    if type(lora_a) is not nn.Linear or type(lora_b) is not nn.Linear:
        return "its adapter is not made of two linear layers"
    for part in (dropout, lora_a, lora_b):
        reason = interference(part)
        if reason is not None:
            return f"{type(part).__name__} of adapter {name!r}: {reason}"
    parameters_a, parameters_b = lora_a.__dict__["_parameters"], lora_b.__dict__["_parameters"]
    if parameters_a.get("bias") is not None or parameters_b.get("bias") is not None:
        return "lora_bias is used"
    weight_a, weight_b = parameters_a.get("weight"), parameters_b.get("weight")
    if weight_a is None or weight_b is None:
        return "its A or B is not a parameter"
    scaling = state["scaling"][name]
    if type(scaling) is not float and type(scaling) is not int:
        return f"its scaling is a {type(scaling).__name__}"
    return Projection(base.weight, base.bias, weight_a, weight_b, scaling)


def carries_adapter(module: nn.Module) -> bool:
    """Whether any part of this module was given an adapter by PEFT, of whatever kind."""
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())
