"""Special tokens of a short vocabulary: as many different ones as the configuration has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from patchkit.testing.tiny_models import PAD_TOKEN, VOCAB_SIZE

_FIXED = {"pad_token_id": PAD_TOKEN, "bos_token_id": 1, "eos_token_id": 2}
_WORDS = ("token_id", "token_index", "_token_ids", "_patch_id", "_start_id", "_end_id", "_newline_id", "eod_id")

FIRST_TEXT_TOKEN = 3
"""Pad, begin and end of sequence stand below it."""

LAST_TEXT_TOKEN = 90
"""Special tokens of images, audio and the like stand above it."""


class SpecialTokens:
    """Which token of the short vocabulary stands for which of the long one; the same one wherever it is named."""

    def __init__(self) -> None:
        self._short: dict[int, int] = {}
        self._next = VOCAB_SIZE - 1

    def shortened(self, name: str, value: Any) -> Any:
        """The value of a field with tokens; what is negative or no number stays."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.shortened(name, entry) for entry in value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return value
        if name in _FIXED:
            self._short[value] = _FIXED[name]
            return _FIXED[name]
        if value not in self._short:
            self._short[value] = self._next
            self._next = max(self._next - 1, LAST_TEXT_TOKEN)
        return self._short[value]


def names_tokens(name: str) -> bool:
    """Whether a field is a token, or several."""
    return name.endswith(_WORDS)


def token_fields(config: Any) -> Iterator[tuple[str, int]]:
    """The fields of a configuration that are one token, by name."""
    for name, value in vars(config).items():
        if names_tokens(name) and isinstance(value, int) and not isinstance(value, bool):
            yield name, value
