"""Readers of PEFT's LoRA layers: ``lora.Linear``, and ``Linear4bit`` and ``Linear8bitLt`` over bitsandbytes' layers.

Source of the semantics: ``peft/tuners/lora/layer.py``, ``bnb.py``, ``dora.py`` and ``variants.py`` of version 0.21: for
each active adapter in turn ``result + lora_B(lora_A(dropout(x))) * scaling``, or DoRA's formula. What a layer does
beyond that is recognised here and left to PEFT, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.lora import dora
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from patchkit.adapters.formula import Formula
from patchkit.adapters.linear import LINEAR, LOOKED_UP, read_linear
from patchkit.adapters.linear_kinds import TRANSPOSED, base_reader
from patchkit.adapters.peft_known import known
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
from patchkit_kernels.lora.projection import Adapter, Projection

# What every layer asks of itself, and where its parts are.
LAYER = "forward _check_forward_args _cast_input_dtype disable_adapters merged active_adapters active_adapter"
_ATTRIBUTES = "base_layer lora_A lora_B lora_dropout scaling lora_variant"

LORA = Formula(
    {
        lora.Linear: LAYER,
        nn.Dropout: "forward",
        nn.Identity: "forward",
        F: "linear dropout",
        nn.ModuleDict: "__getitem__ keys",
    },
    {lora.Linear: _ATTRIBUTES},
    unknown=known("Linear"),
)
FORMULA = LINEAR | LORA
"""What the readers of ``nn.Linear`` and of PEFT's layer over it stand for: asked about once per call of a block."""

_DORA = Formula(
    {
        DoraLinearVariant: "forward",
        dora.DoraLinearLayer: "forward get_weight_norm get_lora_weight _cache_clear",
        dora: "dequantize_module_weight transpose",
        lora.Linear: "get_base_layer",
    },
    {dora.DoraLinearLayer: "weight", lora.Linear: "lora_magnitude_vector"},
    after=FORMULA,
    unknown=known("Linear, DoRA"),
)
_SAVED = Formula(
    {
        ModulesToSaveWrapper: "forward _check_forward_args _forward_wrapped _forward_wrapped_passthrough "
        "disable_adapters active_adapters",
    },
    {ModulesToSaveWrapper: "modules_to_save original_module _adapters"},
    after=FORMULA,
    unknown=known("ModulesToSaveWrapper"),
)

_Linear, _ModuleDict, _Identity, _Dropout = nn.Linear, nn.ModuleDict, nn.Identity, nn.Dropout
_LOOKED_UP = ("_check_forward_args", "_cast_input_dtype", "base_layer", "lora_A", "lora_B", "lora_dropout")
_USUAL_LINEAR = len(nn.Linear(1, 1, device="meta").__dict__)
_USUAL_DROPOUT = {nn.Identity: len(nn.Identity().__dict__), nn.Dropout: len(nn.Dropout().__dict__)}


def lora_reader(bases: Callable[[type[nn.Module]], BaseReader | None], formula: Formula | None = None) -> Reader:
    """The reader of one of PEFT's LoRA layers.

    Args:
        bases: gives the reader of a base layer that this kind of layer wraps, by its exact type; None without one.
        formula: what is to be asked about at each call; None for ``lora.Linear``, which is asked about for the block.
    """

    def read_lora(module: nn.Module) -> Projection | Reason:
        """The tensors of the layer and of its active adapters, or why it must be called instead."""
        # Instance dictionaries are read directly: nn.Module's attribute access costs more than all the checks here.
        state: dict[str, Any] = module.__dict__
        if (
            (state["_forward_pre_hooks"] or state["_forward_hooks"])
            or (state["_backward_hooks"] or state["_backward_pre_hooks"])
            or ("forward" in state or "_call_impl" in state or "_compiled_call_impl" in state)
            or ("base_layer" in state or "lora_A" in state or "lora_B" in state or "lora_dropout" in state)
            or ("_check_forward_args" in state or "_cast_input_dtype" in state)
            or formula is not None
        ):
            reason = interference(module, _LOOKED_UP) or (None if formula is None else formula.replaced())
            if reason is not None:
                return reason
        modules = state["_modules"]
        try:
            if state["_disable_adapters"]:
                return "its adapters are disabled"
            if state["merged_adapters"]:
                return "its adapters are merged"
            base: nn.Module = modules["base_layer"]
            own, transposed = base.__dict__, False
            # What weight_and_bias looks at, without the call: nearly every base is such a layer.
            if (
                type(base) is not _Linear
                or (own["_forward_pre_hooks"] or own["_forward_hooks"])
                or (own["_backward_hooks"] or own["_backward_pre_hooks"])
                or ("forward" in own or "_call_impl" in own or "_compiled_call_impl" in own)
                or ("weight" in own or "bias" in own or "bias" not in own["_parameters"])
            ):
                read = bases(type(base))
                if read is None:
                    return f"its base layer is a {type(base).__module__}.{type(base).__qualname__}"
                found = read(base)
                if isinstance(found, str):
                    return f"base layer: {found}"
                weight, bias = found
                transposed = type(base) in TRANSPOSED
            else:
                parameters = own["_parameters"]
                weight, bias = parameters.get("weight"), parameters["bias"]
                if weight is None:
                    return "base layer: its weight is not a parameter"
            chosen = state["_active_adapter"]  # PEFT keeps one name or a list of names
            factors = modules["lora_A"]
            if type(factors) is not _ModuleDict:
                return "its adapters are not kept in a torch.nn.ModuleDict"
            available = factors.__dict__["_modules"]
            adapters: tuple[Adapter, ...] = ()
            for name in (chosen,) if isinstance(chosen, str) else chosen:
                if name in available:
                    adapter = _read_adapter(state, modules, available, name, transposed)
                    if isinstance(adapter, str):
                        return adapter
                    adapters += (adapter,)
        except KeyError as error:
            return f"its adapter lacks a part: there is no {error}"
        return quick(Projection, (weight, bias, adapters))

    return read_lora


def _read_adapter(
    state: dict[str, Any], modules: dict[str, Any], factors_a: dict[str, nn.Module], name: str, transposed: bool
) -> Adapter | Reason:
    """One adapter of a layer. In one piece: it runs for every projection at every call, where helpers' calls count.

    Raises:
        KeyError: a part of it is not where PEFT looks for it.
    """
    magnitude: torch.Tensor | None = None
    if name in state["lora_variant"]:
        read = _read_magnitude(state, modules, name, transposed)
        if isinstance(read, str):
            return read
        if "get_base_layer" in state:
            return "get_base_layer was replaced on the instance"
        magnitude = read
    factors_b, dropouts = modules["lora_B"], modules["lora_dropout"]
    if type(factors_b) is not _ModuleDict or type(dropouts) is not _ModuleDict:
        return "its adapters are not kept in a torch.nn.ModuleDict"
    dropout: Any = dropouts.__dict__["_modules"][name]
    lora_a, lora_b = factors_a[name], factors_b.__dict__["_modules"][name]
    if type(lora_a) is not _Linear or type(lora_b) is not _Linear:
        return "its adapter is not made of two linear layers"
    own_a, own_b, own, kind = lora_a.__dict__, lora_b.__dict__, dropout.__dict__, type(dropout)
    if (
        (own_a["_forward_pre_hooks"] or own_a["_forward_hooks"] or own_a["_backward_hooks"])
        or (own_b["_forward_pre_hooks"] or own_b["_forward_hooks"] or own_b["_backward_hooks"])
        or (own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_hooks"])
        or (own_a["_backward_pre_hooks"] or own_b["_backward_pre_hooks"] or own["_backward_pre_hooks"])
        or ("forward" in own_a or "forward" in own_b or "forward" in own)
        # An attribute that others of its class do not have: it may be one that is looked up.
        or len(own_a) != _USUAL_LINEAR
        or len(own_b) != _USUAL_LINEAR
        or len(own) != _USUAL_DROPOUT.get(kind)
    ):
        reason = interference(lora_a, LOOKED_UP) or interference(lora_b, LOOKED_UP) or interference(dropout)
        if reason is not None:
            return f"A, B or dropout of adapter {name!r}: {reason}"
    parameters_a, parameters_b = own_a["_parameters"], own_b["_parameters"]
    weight_a, weight_b = parameters_a["weight"], parameters_b["weight"]
    if weight_a is None or weight_b is None or parameters_a["bias"] is not None:
        return "its A or B is not one matrix"
    if not state["cast_input_dtype_enabled"]:
        return "its input is not cast"
    scaling = state["scaling"][name]
    if type(scaling) is not float or not -LARGEST <= scaling <= LARGEST:
        reason = unfit_scaling(scaling)
        if reason is not None:
            return reason
    probability = 0.0
    if kind is _Dropout and type(own["p"]) is float and 0.0 <= own["p"] <= 1.0 and not own["inplace"]:
        if own["training"]:
            probability = own["p"]
    elif kind is not _Identity:
        dropped = drop_probability(dropout)
        if isinstance(dropped, str):
            return dropped
        probability = dropped
    bias = parameters_b["bias"]
    if magnitude is None:
        return quick(Adapter, (weight_a, weight_b, scaling, bias, None, probability))
    if kind is _Identity or not state["training"]:
        probability = 0.0  # PEFT asks the layer, not its dropout, whether it trains
    elif not probability:
        return "its dropout does not train with it"
    return quick(Adapter, (weight_a, weight_b, scaling, bias, magnitude, probability))


def _read_magnitude(
    state: dict[str, Any], modules: dict[str, Any], name: str, transposed: bool
) -> torch.Tensor | Reason:
    """m of a DoRA adapter, or why its variant must be called."""
    variant = state["lora_variant"][name]
    if type(variant) is not DoraLinearVariant:
        return f"LoRA variant {type(variant).__name__}"
    layer = modules["lora_magnitude_vector"].__dict__["_modules"][name]
    if type(layer) is not dora.DoraLinearLayer:
        return f"its magnitude is kept by a {type(layer).__qualname__}"
    own = layer.__dict__
    if (
        (own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"])
        or ("forward" in own or "_call_impl" in own or "_compiled_call_impl" in own)
        or ("weight" in own or "get_weight_norm" in own or "get_lora_weight" in own)
        or not _DORA.held
    ):
        reason = interference(layer, ("weight", "get_weight_norm", "get_lora_weight")) or _DORA.replaced()
        if reason is not None:
            return f"magnitude of adapter {name!r}: {reason}"
    if own.get("fan_in_fan_out") is not transposed:
        return "its magnitude is of its weight transposed"
    if not own["training"] and getattr(dora, "ENABLE_DORA_CACHING", False):
        return "PEFT's DoRA cache is on"
    magnitude = own["_parameters"].get("weight")
    return "its magnitude is not a parameter" if magnitude is None else magnitude


def read_modules_to_save(module: nn.Module) -> Projection | Reason:
    """The copy that ``modules_to_save`` trains (or the original, where that is what runs): ``torch.nn.Linear`` only."""
    reason = interference(module, ("original_module", "modules_to_save")) or _SAVED.replaced()
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


def peft_library(quantised: dict[type[nn.Module], BaseReader], formula: Formula | None = None) -> Library:
    """PEFT's layers.

    Args:
        quantised: the readers of bitsandbytes' layers as bases; empty where it is not installed.
        formula: the functions of bitsandbytes that these stand for.
    """
    readers: dict[type[nn.Module], Reader] = {
        lora.Linear: lora_reader(base_reader),
        ModulesToSaveWrapper: read_modules_to_save,
    }
    for name in ("Linear4bit", "Linear8bitLt"):
        layer = getattr(lora, name, None)
        if layer is not None and formula is not None:
            own = Formula({layer: f"{LAYER} get_base_layer"}, {layer: _ATTRIBUTES}, unknown=known(name))
            readers[layer] = lora_reader(quantised.get, own | formula)
    return Library(readers, (BaseTunerLayer,), casts_input=True)
