"""Tiny models of every architecture, from configurations alone: no download, random weights that mean something.

Upstream initialises with a standard deviation of 0.02. Activations then shrink from layer to layer, gate
pre-activations stay near zero where every activation function looks linear, and a wrong adapter, bias or GELU
changes nothing that a tolerance would see. Here weights are scaled by their fan-in so that activations are of order 1,
gates span about [-6, 6], biases are not zero and norm weights are not one.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from patchkit.arch.registry import architectures
from patchkit.testing.random_state import seeded

VOCAB_SIZE = 128
IMAGE_TOKEN = 127
VISION_END_TOKEN = 126
VISION_START_TOKEN = 125
VIDEO_TOKEN = 124
PAD_TOKEN = 0

_HIDDEN_SIZE = 64

# An intermediate size that is no power of two, fewer key/value heads than query heads.
_DECODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": _HIDDEN_SIZE,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD_TOKEN,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# 4 heads of 20 make 80: an output of q_proj that is as wide as its input would hide a swapped dimension.
_WIDE_HEADS = {"head_dim": 20}
_GEMMA23 = _WIDE_HEADS | {"query_pre_attn_scalar": 20, "sliding_window": 5, "sliding_window_pattern": 2}
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}

_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 32,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "vision_use_head": False,
}
_PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 2,
    "hidden_act": "silu",
}
_QWEN2_VL_VISION = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": _HIDDEN_SIZE,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 2,
}
_QWEN2_5_VL_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 56,
    "out_hidden_size": _HIDDEN_SIZE,
    "num_heads": 2,
    "patch_size": 2,
    "window_size": 8,
    "fullatt_block_indexes": [1],
}
_QWEN_VL_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START_TOKEN,
    "vision_end_token_id": VISION_END_TOKEN,
}


@dataclass(frozen=True)
class _Recipe:
    """How one tiny model is configured.

    Attributes:
        model_class: name in ``transformers``.
        config_class: name in ``transformers``.
        text: values of the text configuration, beyond the common ones.
        text_model_type: the ``model_type`` of a multimodal model's text configuration; ``None`` where text values stand
            at the top level, as in the files of Qwen's multimodal models.
        vision: the vision configuration; ``None`` for a text-only model.
        top: values of the top-level configuration of a multimodal model.
    """

    model_class: str
    config_class: str
    text: Mapping[str, Any] = field(default_factory=dict)
    text_model_type: str | None = None
    vision: Mapping[str, Any] | None = None
    top: Mapping[str, Any] = field(default_factory=dict)


def _multimodal(stem: str, text: str | None, vision: Mapping[str, Any], **top: Any) -> _Recipe:
    return _Recipe(
        model_class=f"{stem}ForConditionalGeneration",
        config_class=f"{stem}Config",
        text=_MROPE if text is None else _TEXT[text].text,
        text_model_type="gemma3_text" if text == "gemma3" else text,
        vision=vision,
        top=_QWEN_VL_TOKENS if text is None else {"image_token_index": IMAGE_TOKEN} | top,
    )


_TEXT: dict[str, _Recipe] = {
    "llama": _Recipe("LlamaForCausalLM", "LlamaConfig"),
    "mistral": _Recipe("MistralForCausalLM", "MistralConfig", _WIDE_HEADS | {"sliding_window": 5}),
    "qwen2": _Recipe("Qwen2ForCausalLM", "Qwen2Config"),
    "gemma": _Recipe("GemmaForCausalLM", "GemmaConfig", _WIDE_HEADS),
    "gemma2": _Recipe("Gemma2ForCausalLM", "Gemma2Config", _GEMMA23),
    "gemma3": _Recipe("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA23),
}
_PALIGEMMA_TOP = {"projection_dim": _HIDDEN_SIZE, "hidden_size": _HIDDEN_SIZE, "vocab_size": VOCAB_SIZE}
_MULTIMODAL: dict[str, _Recipe] = {
    "gemma3_mm": _multimodal(
        "Gemma3",
        "gemma3",
        _SIGLIP | {"patch_size": 2},
        mm_tokens_per_image=4,
        boi_token_index=VISION_START_TOKEN,
        eoi_token_index=VISION_END_TOKEN,
    ),
    "llava": _multimodal("Llava", "llama", _CLIP),
    "llava_mistral": _multimodal("Llava", "mistral", _CLIP),
    "llava_qwen2": _multimodal("Llava", "qwen2", _CLIP),
    "llava_gemma": _multimodal("Llava", "gemma", _CLIP),
    # As Pixtral-12B: a LLaVA whose vision tower takes images of any size.
    "llava_pixtral": _multimodal(
        "Llava",
        "mistral",
        _PIXTRAL | {"hidden_act": "gelu"},
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
    "mistral3": _multimodal("Mistral3", "mistral", _PIXTRAL),
    "paligemma": _multimodal("PaliGemma", "gemma", _SIGLIP, **_PALIGEMMA_TOP),
    "paligemma_gemma2": _multimodal("PaliGemma", "gemma2", _SIGLIP, **_PALIGEMMA_TOP),
    "qwen2_vl": _multimodal("Qwen2VL", None, _QWEN2_VL_VISION),
    "qwen2_5_vl": _multimodal("Qwen2_5_VL", None, _QWEN2_5_VL_VISION),
}
_RECIPES = MappingProxyType(_TEXT | _MULTIMODAL)

TEXT_MODELS: tuple[str, ...] = tuple(_TEXT)
"""Names of the text-only tiny models: those of the architectures."""

MULTIMODAL_MODELS: tuple[str, ...] = tuple(_MULTIMODAL)
"""Names of the multimodal tiny models.

The name of the architecture stands for its usual text tower; ``<architecture>_<tower>`` names another text or vision
tower, and ``gemma3_mm`` the multimodal Gemma 3, because ``gemma3`` is the text-only one.
"""

TINY_MODELS: tuple[str, ...] = TEXT_MODELS + MULTIMODAL_MODELS
"""Every name that :func:`tiny_model` knows."""


def tiny_models_of(architecture: str) -> tuple[str, ...]:
    """The tiny models that hold the blocks of an architecture, as text model or vision tower; none without a recipe.

    Args:
        architecture: its name in ``patchkit.arch``.
    """
    # qwen2_vl is an architecture of its own, not a form of qwen2.
    others = [f"{name}_" for name in architectures() if name.startswith(f"{architecture}_")]

    def holds(name: str) -> bool:
        stem, vision = f"{name}_", _RECIPES[name].vision or {}
        own = stem.startswith(f"{architecture}_") and not stem.startswith(tuple(others))
        return own or vision.get("model_type") == architecture

    return tuple(filter(holds, TINY_MODELS))


def tiny_model(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **config_overrides: Any
) -> PreTrainedModel:
    """A model of two layers and hidden size 64, in train mode, on the CPU. Global random state is left as it was.

    Args:
        name: one of :data:`TINY_MODELS`.
        dtype: of the parameters. Buffers (rope frequencies, embedding scale) stay as upstream makes them, which is
            what ``from_pretrained(dtype=...)`` does and ``model.to(dtype)`` does not.
        seed: weights depend on this and on the parameter's name only.
        config_overrides: values of the text configuration, e.g. ``intermediate_size=96``, ``attention_dropout=0.1``;
            a mapping ``vision_config={...}`` is merged into the vision configuration.

    Raises:
        ValueError: the name is unknown, or this release of transformers has no such model.
    """
    if name not in _RECIPES:
        raise ValueError(f"unknown tiny model {name!r}; known: {', '.join(TINY_MODELS)}")
    recipe = _RECIPES[name]
    config = _config(recipe, config_overrides)
    model_class = _from_transformers(recipe.model_class)
    with seeded(seed):
        model: PreTrainedModel = model_class(config)
    initialise(model, seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.train()


def _config(recipe: _Recipe, overrides: Mapping[str, Any]) -> Any:
    overrides = dict(overrides)
    vision = dict(recipe.vision or {}) | dict(overrides.pop("vision_config", {}))
    text = _DECODER | dict(recipe.text) | overrides
    config_class = _from_transformers(recipe.config_class)
    if recipe.vision is None:
        return config_class(**text)
    # Multimodal classes tie by the top-level value, which for some defaults to another than the text model's own.
    text.setdefault("tie_word_embeddings", "gemma" in str(recipe.text_model_type))
    top = dict(recipe.top) | {"tie_word_embeddings": text["tie_word_embeddings"], "vision_config": vision}
    # PaliGemma states the width of its text model again at the top.
    top |= {key: text["hidden_size"] for key in ("hidden_size", "projection_dim") if key in recipe.top}
    if recipe.text_model_type is None:
        return config_class(**text | top)
    return config_class(**top, text_config=text | {"model_type": recipe.text_model_type})


def _from_transformers(name: str) -> Any:
    try:
        return getattr(transformers, name)
    except AttributeError as error:
        raise ValueError(f"transformers {transformers.__version__} has no {name}") from error


def generator_for(name: str, seed: int) -> torch.Generator:
    """A CPU generator that depends on ``seed`` and ``name`` only.

    One generator per parameter, so that a release that adds or reorders parameters leaves the others' values alone.
    """
    return torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ (seed * 0x9E3779B1))


@torch.no_grad()
def initialise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter of a freshly built model a value of the order described at the top of this file.

    Args:
        model: parameters of any shape; written in place.
        seed: see :func:`generator_for`.
    """
    embeddings = {id(module.weight): module for module in model.modules() if isinstance(module, nn.Embedding)}
    outputs = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    tied = id(getattr(outputs, "weight", None))  # some have a list of them
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}"
            noise = torch.randn(parameter.shape, generator=generator_for(full_name, seed))
            noise = noise.to(parameter.device, parameter.dtype)
            if "norm" in type(module).__name__.lower():
                # Around upstream's own start: 1, or 0 where the formula is (1 + weight).
                parameter.add_(noise, alpha=0.2)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif id(parameter) in embeddings:
                # A tied embedding is a linear layer too: logits should be of order 1.
                parameter.copy_(noise * (parameter.shape[-1] ** -0.5 if id(parameter) == tied else 1.0))
            elif parameter.ndim < 2:
                parameter.copy_(noise)
            else:
                fan_in = parameter[0].numel() if isinstance(module, nn.modules.conv._ConvNd) else _fan_in(module, name)
                gain = 2.0 if "gate" in module_name.rpartition(".")[2] else 1.0
                parameter.copy_(noise * gain * fan_in**-0.5)


def _fan_in(module: nn.Module, name: str) -> int:
    weight = getattr(module, name)
    # A bare matrix (Gemma 3's projector) is multiplied from the right: [in, out].
    return int(weight.shape[-1] if isinstance(module, nn.Linear) else weight.shape[0])
