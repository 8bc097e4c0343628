"""What no rule finds: values for the configurations of single model types, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Hint(NamedTuple):
    """Values that a model type needs.

    Attributes:
        reason: why no rule gives them.
        values: by the path of a field, such as ``text_config.hidden_size``; set after sizes are made small.
        arguments: of the constructor, where the class cannot be made without.
    """

    reason: str
    values: Mapping[str, Any] = MappingProxyType({})
    arguments: Mapping[str, Any] = MappingProxyType({})


HINTS: Mapping[str, Hint] = MappingProxyType(
    {
        "gemma4_assistant": Hint(
            "its defaults contradict its own validation",
            arguments={"text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0}},
        ),
        "xmod": Hint("it has adapters for languages, and wants to know which", {"default_language": "en_XX"}),
    }
)
"""By model type, sorted."""
