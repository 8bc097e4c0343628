"""What no rule finds for a model type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from patchkit.testing.tiny.given import NOTHING, Given


class Hint(NamedTuple):
    """Values and inputs that a model type needs.

    Attributes:
        reason: why no rule gives them.
        values: by the path of a field, such as ``attn_config.clip_qkv``; set after sizes are made small.
        inputs: of the forward of a model of this type, beside text, or in place of what text would be.
        instead: what a part of the tiny model stands in for, as the reader of an outcome is told it.
        lacks: why no tiny model is tried: what it would want and nothing here gives.
    """

    reason: str
    values: Mapping[str, Any] = MappingProxyType({})
    inputs: Mapping[str, Given] = NOTHING
    instead: str = ""
    lacks: str = ""
