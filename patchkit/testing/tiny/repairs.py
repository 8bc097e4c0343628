"""What an error says about two sizes that should be one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from patchkit.testing.tiny.shrinking import is_config
from patchkit.testing.tiny_models import VOCAB_SIZE

_PATTERNS = (
    r"\d+x(\d+) and (\d+)x\d+",
    r"tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
    r"normalized_shape=\[(\d+)\].*?, (\d+)\]",
)
_MOST_NUMBERS = 4

LARGE = 200
"""A size that is not tiny."""


def repairs(config: Any, message: str) -> Iterator[tuple[str, Any]]:
    """Copies of a configuration in which one field has another size that the error names, and which field that is.

    Args:
        config: that gave the error; nested ones are looked at too.
        message: of the error, as torch or upstream raised it.
    """
    for wrong, right in _pairs(message):
        too_large = wrong > LARGE
        for path in _fields(config, wrong, parts=too_large):
            changed = copy.deepcopy(config)
            holder = changed
            for name in path[:-1]:
                holder = getattr(holder, name)
            setattr(holder, path[-1], right)
            yield f"{'.'.join(path)}={right}", changed


def _pairs(message: str) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    if found := re.search(r"\[([\d, ]+)\] is not tiny", message):
        return [(size, VOCAB_SIZE // 2) for size in sorted(map(int, found[1].split(",")), reverse=True) if size > LARGE]
    for pattern in _PATTERNS:
        for found in re.finditer(pattern, message):
            one, other = int(found[1]), int(found[2])
            pairs += [(one, other), (other, one)]
    numbers = list(dict.fromkeys(int(number) for number in re.findall(r"\d+", message)))
    if not pairs and len(numbers) <= _MOST_NUMBERS:  # more of them are a story, not a mismatch
        pairs = [(one, other) for one in numbers for other in numbers]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and min(pair) > 1 and pair[1] <= LARGE]


def _fields(config: Any, value: int, parts: bool) -> Iterator[tuple[str, ...]]:
    """The paths of the fields with a value, or with a factor of a value that is too large."""
    for name, found in vars(config).items():
        if is_config(found):
            yield from ((name, *path) for path in _fields(found, value, parts))
        elif isinstance(found, bool) or not isinstance(found, int) or name.startswith("_"):
            continue
        elif found == value or (parts and found > VOCAB_SIZE and value % found == 0):
            yield (name,)
