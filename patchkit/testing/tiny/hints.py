"""What no rule finds: values for the configurations of single model types, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Hint(NamedTuple):
    """Values that a model type needs.

    Attributes:
        values: by the path of a field, such as ``text_config.hidden_size``.
        reason: why no rule gives them.
    """

    values: Mapping[str, Any]
    reason: str


HINTS: Mapping[str, Hint] = MappingProxyType({})
"""By model type, sorted."""
