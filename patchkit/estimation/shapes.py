"""Sizes of models that people train, by name: what `patchkit estimate` and `patchkit bench` know without a file."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

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
        "gemma-3-4b": (
            "Gemma3TextConfig",
            {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "vocab_size": 262208,
                "sliding_window": 1024,
                "max_position_embeddings": 131072,
                "tie_word_embeddings": True,
            },
        ),
        "qwen-0.5b": (
            "Qwen2Config",
            {
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "max_position_embeddings": 32768,
                "tie_word_embeddings": True,
            },
        ),
        "llama-70b": (
            "LlamaConfig",
            {
                "hidden_size": 8192,
                "intermediate_size": 28672,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
                "max_position_embeddings": 131072,
                "tie_word_embeddings": False,
            },
        ),
    }
)
"""The class of the configuration and its values, as the published ``config.json`` has them.

Llama 3.1 8B and 70B, the text models of Gemma 3 1B and 4B, Qwen 2.5 0.5B.
"""

OTHER_NAMES: Mapping[str, str] = MappingProxyType({"gemma-1b": "gemma-3-1b", "gemma-4b": "gemma-3-4b"})
"""Shorter names of the same."""


def shape_named(name: str, also: Collection[str] = ()) -> str:
    """The name in :data:`SHAPES` that is meant.

    Args:
        name: that one, or one of :data:`OTHER_NAMES`.
        also: names that there are besides.

    Raises:
        EstimateError: there is none; with what is near.
    """
    known = [*SHAPES, *also]
    if name in known:
        return name
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    near = difflib.get_close_matches(name, [*known, *OTHER_NAMES], n=2)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise EstimateError(f"there is no shape {name!r}; there are {', '.join(known)}{hint}")
