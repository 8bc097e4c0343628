"""What an error says about two sizes that should be one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

from patchkit.testing.tiny.shrinking import is_config

_PATTERNS = (
    r"\d+x(\d+) and (\d+)x\d+",
    r"tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
    r"normalized_shape=\[(\d+)\].*?, (\d+)\]",
    r"invalid for input of size (\d+)",
)
_MOST_NUMBERS = 6


def repairs(config: Any, error: BaseException) -> Iterator[tuple[str, Any]]:
    """Copies of a configuration in which one field has another size that the error names, and which field that is.

    Args:
        config: that gave the error; nested ones are looked at too.
        error: as torch or upstream raised it.
    """
    for wrong, right in _pairs(str(error)):
        for path in _fields(config, wrong):
            changed = copy.deepcopy(config)
            holder = changed
            for name in path[:-1]:
                holder = getattr(holder, name)
            setattr(holder, path[-1], right)
            yield f"{'.'.join(path)}={right}", changed


def _pairs(message: str) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for pattern in _PATTERNS:
        for found in re.finditer(pattern, message):
            numbers = [int(group) for group in found.groups()]
            if len(numbers) == 2:
                pairs += [(numbers[0], numbers[1]), (numbers[1], numbers[0])]
    numbers = list(dict.fromkeys(int(number) for number in re.findall(r"\d+", message)))[:_MOST_NUMBERS]
    pairs += [(one, other) for one in numbers for other in numbers]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and min(pair) > 1]


def _fields(config: Any, value: int) -> Iterator[tuple[str, ...]]:
    for name, found in vars(config).items():
        if is_config(found):
            yield from ((name, *path) for path in _fields(found, value))
        elif isinstance(found, int) and not isinstance(found, bool) and found == value and not name.startswith("_"):
            yield (name,)
