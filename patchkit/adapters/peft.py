"""Readers of PEFT's LoRA layers: ``lora.Linear``, and ``Linear4bit`` and ``Linear8bitLt`` over bitsandbytes' layers.

Source of the semantics: ``peft/tuners/lora/layer.py``, ``bnb.py``, ``dora.py`` and ``variants.py`` of version 0.21: for
each active adapter in turn ``result + lora_B(lora_A(dropout(x))) * scaling``, or DoRA's formula. What a layer does
beyond that is recognised here and left to PEFT, with the reason.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import dora
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from patchkit.adapters.linear import read_linear, weight_and_bias
from patchkit.adapters.protocol import (
    LARGEST,
    BaseReader,
    Library,
    Reader,
    Reason,
    drop_probability,
    interference,
    quick,
    unfit_scaling,
)
from patchkit_kernels.projection import Adapter, Projection


def lora_reader(bases: dict[type[nn.Module], BaseReader]) -> Reader:
    """The reader of one of PEFT's LoRA layers.

    Args:
        bases: the readers of the base layers that this kind of layer wraps, by exact type.
    """

    def read_lora(module: nn.Module) -> Projection | Reason:
        """The tensors of the layer and of its active adapters, or why it must be called instead."""
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
        read = bases.get(type(base))
        if read is None:
            return f"its base layer is a {type(base).__module__}.{type(base).__qualname__}"
        found = read(base)
        if isinstance(found, str):
            return f"base layer: {found}"
        chosen: Any = module._active_adapter  # PEFT keeps one name or a list of names
        available = modules["lora_A"].__dict__["_modules"]
        adapters: tuple[Adapter, ...] = ()
        try:
            for name in (chosen,) if isinstance(chosen, str) else chosen:
                if name in available:
                    adapter = _read_adapter(state, modules, name)
                    if isinstance(adapter, str):
                        return adapter
                    adapters += (adapter,)
        except KeyError as error:
            return f"its adapter lacks a part: there is no {error}"
        return quick(Projection, (found[0], found[1], adapters))

    return read_lora


def _read_adapter(state: dict[str, Any], modules: dict[str, Any], name: str) -> Adapter | Reason:
    """One adapter of a layer. In one piece: it runs for every projection at every call, where helpers' calls count."""
    magnitude: torch.Tensor | None = None
    if name in state["lora_variant"]:
        read = _read_magnitude(state, modules, name)
        if isinstance(read, str):
            return read
        magnitude = read
    dropout = modules["lora_dropout"].__dict__["_modules"][name]
    lora_a = modules["lora_A"].__dict__["_modules"][name]
    lora_b = modules["lora_B"].__dict__["_modules"][name]
    if type(lora_a) is not nn.Linear or type(lora_b) is not nn.Linear:
        return "its adapter is not made of two linear layers"
    own_a, own_b, own = lora_a.__dict__, lora_b.__dict__, dropout.__dict__
    if (
        (own_a["_forward_pre_hooks"] or own_a["_forward_hooks"] or own_a["_backward_hooks"])
        or (own_b["_forward_pre_hooks"] or own_b["_forward_hooks"] or own_b["_backward_hooks"])
        or (own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_hooks"])
        or (own_a["_backward_pre_hooks"] or own_b["_backward_pre_hooks"] or own["_backward_pre_hooks"])
        or ("forward" in own_a or "forward" in own_b or "forward" in own)
    ):
        reason = interference(lora_a) or interference(lora_b) or interference(dropout)
        if reason is not None:
            return f"A, B or dropout of adapter {name!r}: {reason}"
    parameters_a, parameters_b = own_a["_parameters"], own_b["_parameters"]
    weight_a, weight_b = parameters_a.get("weight"), parameters_b.get("weight")
    if weight_a is None or weight_b is None or parameters_a.get("bias") is not None:
        return "its A or B is not one matrix"
    if state.get("fan_in_fan_out") or not state["cast_input_dtype_enabled"]:
        return "its input is not cast, or its weight is transposed"
    scaling = state["scaling"][name]
    if type(scaling) is not float or not -LARGEST <= scaling <= LARGEST:
        reason = unfit_scaling(scaling)
        if reason is not None:
            return reason
    probability = 0.0
    if type(dropout) is not nn.Identity:
        dropped = drop_probability(dropout)
        if isinstance(dropped, str):
            return dropped
        probability = dropped
    bias = parameters_b.get("bias")
    if magnitude is None:
        return quick(Adapter, (weight_a, weight_b, scaling, bias, None, probability))
    if type(dropout) is nn.Identity or not state["training"]:
        probability = 0.0  # PEFT asks the layer, not its dropout, whether it trains
    elif not probability:
        return "its dropout does not train with it"
    return Adapter(weight_a, weight_b, scaling, bias, magnitude, probability)


def _read_magnitude(state: dict[str, Any], modules: dict[str, Any], name: str) -> torch.Tensor | Reason:
    """m of a DoRA adapter, or why its variant must be called."""
    variant = state["lora_variant"][name]
    if type(variant) is not DoraLinearVariant:
        return f"LoRA variant {type(variant).__name__}"
    layer = modules["lora_magnitude_vector"].__dict__["_modules"][name]
    if type(layer) is not dora.DoraLinearLayer:
        return f"its magnitude is kept by a {type(layer).__qualname__}"
    reason = interference(layer)
    if reason is not None:
        return f"magnitude of adapter {name!r}: {reason}"
    if getattr(dora, "ENABLE_DORA_CACHING", False) and not layer.training:
        return "PEFT's DoRA cache is on"
    magnitude = layer.__dict__["_parameters"].get("weight")
    return "its magnitude is not a parameter" if magnitude is None else magnitude


def read_modules_to_save(module: nn.Module) -> Projection | Reason:
    """The copy that ``modules_to_save`` trains (or the original, where that is what runs): ``torch.nn.Linear`` only."""
    reason = interference(module)
    if reason is not None:
        return reason
    state: dict[str, Any] = module.__dict__
    modules = state["_modules"]
    chosen: Any = module._active_adapter
    active = [chosen] if isinstance(chosen, str) else chosen
    copies = modules["modules_to_save"].__dict__["_modules"]
    inner = modules["original_module"]
    if active and not state["_disable_adapters"] and all(name in copies for name in active):
        inner = copies[active[0]]
    if type(inner) is not nn.Linear:
        return f"modules_to_save holds a {type(inner).__module__}.{type(inner).__qualname__}"
    return read_linear(inner)


def peft_library(quantised: dict[type[nn.Module], BaseReader]) -> Library:
    """PEFT's layers.

    Args:
        quantised: the readers of bitsandbytes' layers as bases; empty where it is not installed.
    """
    from peft.tuners import lora

    readers: dict[type[nn.Module], Reader] = {
        lora.Linear: lora_reader({nn.Linear: weight_and_bias}),
        ModulesToSaveWrapper: read_modules_to_save,
    }
    for name in ("Linear4bit", "Linear8bitLt"):
        if quantised and hasattr(lora, name):
            readers[getattr(lora, name)] = lora_reader(quantised)
    return Library(readers, (BaseTunerLayer,), casts_input=True)
