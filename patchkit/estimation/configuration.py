"""Models with adapters made of a configuration alone, on the ``meta`` device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from patchkit.errors import EstimateError

SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama-8b": (
            "LlamaConfig",
            {
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "tie_word_embeddings": False,
            },
        ),
        "gemma-3-1b": (
            "Gemma3TextConfig",
            {
                "hidden_size": 1152,
                "intermediate_size": 6912,
                "num_hidden_layers": 26,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "vocab_size": 262144,
                "sliding_window": 512,
                "max_position_embeddings": 131072,
                "tie_word_embeddings": True,
            },
        ),
    }
)
"""Sizes of models that people train, by name: the class of the configuration and its values.

Llama 3.1 8B and Gemma 3 1B, as their published ``config.json`` have them.
"""


class Adapters(NamedTuple):
    """The adapters that a model gets.

    Attributes:
        rank: r.
        targets: names of layers, or ``all-linear``.
        dropout: the probability.
    """

    rank: int = 16
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0


def configuration_of(name: str | Path) -> Any:
    """The configuration of a shape of :data:`SHAPES`, a folder or file, or a name on the Hugging Face hub.

    Raises:
        EstimateError: there is none.
    """
    if str(name) in SHAPES:
        config_class, values = SHAPES[str(name)]
        return getattr(transformers, config_class)(**values)
    try:
        return transformers.AutoConfig.from_pretrained(str(name))
    except Exception as error:
        raise EstimateError(
            f"no configuration is found at {str(name)!r} ({type(error).__name__}: {error}). Give a folder with a "
            f"config.json, that file, a name on the hub, or one of these shapes: {', '.join(SHAPES)}."
        ) from error


def model_of(config: Any, dtype: torch.dtype, adapters: Adapters, *, attention: str = "sdpa") -> PeftModel:
    """A causal language model with LoRA adapters on ``meta``, as PEFT makes it of a model in this dtype.

    Args:
        config: of transformers; changed.
        dtype: of the base. PEFT keeps adapters in float32 over half precision.
        adapters: which it gets.
        attention: an implementation of transformers.

    Raises:
        EstimateError: there is no such model, or no such adapters.
    """
    text = getattr(config, "get_text_config", lambda: config)()
    # Packages for flash attention are not needed to count what they keep, so nothing is asked to load them.
    flash = attention not in ("sdpa", "eager")
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="sdpa" if flash else attention
            )
            found = get_peft_model(
                model,
                LoraConfig(
                    r=adapters.rank,
                    lora_alpha=2 * adapters.rank,
                    lora_dropout=adapters.dropout,
                    target_modules=adapters.targets if isinstance(adapters.targets, str) else list(adapters.targets),
                    task_type="CAUSAL_LM",
                ),
            )
    except Exception as error:
        raise EstimateError(
            f"no model with adapters can be made of a {type(config).__name__} ({type(error).__name__}: {error})"
        ) from error
    if flash:
        for one in (model.config, text):
            vars(one)["_attn_implementation_internal"] = attention
    return found
