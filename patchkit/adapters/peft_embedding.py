"""Reader of PEFT's ``lora.Embedding``: LoRA, several active adapters of it, or one DoRA adapter.

Source of the semantics: ``peft/tuners/lora/layer.py``, ``Embedding.forward``; ``peft/tuners/lora/variants.py``,
``DoraEmbeddingVariant``. PEFT applies no dropout here: an embedding's ``lora_dropout`` module is made and never called.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from peft.tuners.lora import dora
from peft.tuners.lora.layer import Embedding
from peft.tuners.lora.variants import DoraEmbeddingVariant
from torch import Tensor, nn

from patchkit.adapters.formula import Formula
from patchkit.adapters.peft_known import known
from patchkit.adapters.protocol import Reason, interference, unfit_scaling
from patchkit.adapters.scaled_embedding import is_scaled_embedding
from patchkit_kernels.lora.embedding import EmbeddingAdapter, EmbeddingTable

_ATTRIBUTES = "base_layer lora_embedding_A lora_embedding_B scaling lora_variant input_fns output_fns"
_EMBEDDING = Formula(
    {
        # The patched class calls this forward, or computes what it computes.
        Embedding: "forward _check_forward_args _embed _get_embed_scale get_base_layer disable_adapters merged "
        "active_adapters active_adapter",
        nn.Embedding: "forward",
        F: "embedding",
        nn.ParameterDict: "__getitem__ __contains__",
    },
    {Embedding: _ATTRIBUTES, nn.Embedding: "weight"},
    unknown=known("Embedding"),
)
_DORA = Formula(
    {
        DoraEmbeddingVariant: "forward",
        dora.DoraEmbeddingLayer: "forward get_weight_norm get_lora_weight _cache_clear",
        dora: "transpose",
    },
    {dora.DoraEmbeddingLayer: "weight", Embedding: "lora_magnitude_vector"},
    unknown=known("Embedding, DoRA"),
)
_LOOKED_UP = (
    *("base_layer", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    *("_check_forward_args", "_embed", "_get_embed_scale", "get_base_layer"),
)


def read_lora_embedding(module: nn.Module) -> EmbeddingTable | Reason:
    """The tensors of a PEFT ``lora.Embedding``, or why its own ``forward`` must run.

    Hooks on the module itself are no reason: they run around its ``forward``, whatever that computes.
    """
    reason = _EMBEDDING.replaced()
    if reason is not None:
        return reason
    state: dict[str, Any] = module.__dict__
    for name in _LOOKED_UP:
        if name in state:
            return f"{name} was replaced on the instance"
    modules = state["_modules"]
    if state["_disable_adapters"]:
        return "its adapters are disabled"
    if state["merged_adapters"]:
        return "its adapters are merged"
    if state.get("input_fns") or state.get("output_fns"):
        return "it is a tensor parallel layer"
    base = _read_base(modules["base_layer"])
    if isinstance(base, str):
        return base
    # Parameter dictionaries keep their parameters as attributes, as every module does.
    factors_a = modules["lora_embedding_A"].__dict__["_parameters"]
    factors_b = modules["lora_embedding_B"].__dict__["_parameters"]
    chosen: Any = module._active_adapter  # PEFT keeps one name or a list of names
    active = [name for name in ([chosen] if isinstance(chosen, str) else chosen) if name in factors_a]
    if any(name in state["lora_variant"] for name in active):
        return _with_dora(state, modules, active, base)
    adapters: list[EmbeddingAdapter] = []
    for name in active:
        adapter = _adapter(state, name, factors_a.get(name), factors_b.get(name))
        if isinstance(adapter, str):
            return adapter
        adapters.append(adapter)
    return base._replace(adapters=tuple(adapters))


def _read_base(base: nn.Module) -> EmbeddingTable | Reason:
    kind = type(base)
    scaled = kind is not nn.Embedding
    if scaled and not is_scaled_embedding(kind):
        return f"its base layer is a {kind.__module__}.{kind.__qualname__}"
    reason = interference(base, ("weight",))
    if reason is not None:
        return f"base layer: {reason}"
    state = base.__dict__
    if state["max_norm"] is not None or state["scale_grad_by_freq"] or state["sparse"]:
        return "its base layer uses max_norm, scale_grad_by_freq or sparse"
    weight, scale = state["_parameters"].get("weight"), state["_buffers"].get("embed_scale")
    if weight is None:
        return "base layer: its weight is not a parameter"
    if scaled and (scale is None or scale.numel() != 1 or scale.requires_grad):
        return "its embed_scale is not a constant of one element"
    if not scaled and (scale is not None or "embed_scale" in state or "embed_scale" in state["_parameters"]):
        # PEFT goes by the attribute alone and would scale what the adapter adds
        return "its base layer has an embed_scale that its forward does not use"
    return EmbeddingTable(weight, (), state["padding_idx"], scale)


def _adapter(state: dict[str, Any], name: str, lora_a: object, lora_b: object) -> EmbeddingAdapter | Reason:
    if not isinstance(lora_a, Tensor) or not isinstance(lora_b, Tensor):
        return "its A or B is not a parameter"
    scaling = state["scaling"][name]
    return unfit_scaling(scaling) or EmbeddingAdapter(lora_a, lora_b, scaling)


def _with_dora(
    state: dict[str, Any], modules: dict[str, Any], active: list[str], base: EmbeddingTable
) -> EmbeddingTable | Reason:
    if len(active) > 1:
        return "several adapters are active, not all of them plain LoRA"
    name = active[0]
    kind = type(state["lora_variant"][name])
    if kind is not DoraEmbeddingVariant:
        return f"LoRA variant {kind.__name__}"
    layer = modules["lora_magnitude_vector"].__dict__["_modules"][name]
    if type(layer) is not dora.DoraEmbeddingLayer or not layer.fan_in_fan_out:
        return f"its magnitude is kept by a {type(layer).__qualname__}"
    reason = interference(layer, ("weight", "get_weight_norm", "get_lora_weight")) or _DORA.replaced()
    if reason is not None:
        return f"its magnitude: {reason}"
    if getattr(dora, "ENABLE_DORA_CACHING", False) and not layer.training:  # an option since PEFT 0.19
        return "PEFT's DoRA caching is on"
    magnitude = layer.__dict__["_parameters"].get("weight")
    if not isinstance(magnitude, Tensor):
        return "its magnitude is not a parameter"
    factors = [modules[key].__dict__["_parameters"].get(name) for key in ("lora_embedding_A", "lora_embedding_B")]
    adapter = _adapter(state, name, *factors)
    return adapter if isinstance(adapter, str) else base._replace(adapters=(adapter,), magnitude=magnitude)
