"""The layers that a tiny model keeps: few, and of every kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST = 6
"""More layers than these are not kept in a row; then the first of each kind are."""


def kept_layers(count: int, lists: Iterable[Sequence[Any]], fewest: int = 2) -> list[int]:
    """Indices of layers to keep, ascending.

    The shortest prefix that has every kind of layer, because models count from the front: which layer shares whose
    keys, which are dense. Where this takes more than :data:`MOST` layers, the first layer of each kind.

    Args:
        count: how many layers there are.
        lists: what there is for each layer, ``count`` entries each. Layers of one kind have the same in all of them.
        fewest: at least this many, if there are as many.
    """
    kinds: dict[str, int] = {}
    columns = [list(values) for values in lists if _tells_kinds(values)]
    for index in range(count):
        kinds.setdefault(repr([column[index] for column in columns]), index)
    firsts = sorted(kinds.values())
    prefix = max([fewest, *(index + 1 for index in firsts)])
    if prefix <= MOST:
        return list(range(min(prefix, count)))
    more = [index for index in range(count) if index not in firsts]
    kept = firsts[:MOST]
    return sorted(kept + more[: max(0, fewest - len(kept))])


def _tells_kinds(values: Sequence[Any]) -> bool:
    """A list that has another entry for each layer (a schedule) tells no kinds."""
    different = {repr(value) for value in values}
    return len(different) <= max(4, len(values) // 4)


def per_layer(values: Mapping[str, Any], count: int) -> dict[str, Sequence[Any]]:
    """The fields that have one entry for each layer."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (list, tuple)) and len(value) == count and not _is_nested(value)
    }


def _is_nested(value: Sequence[Any]) -> bool:
    return any(isinstance(entry, (list, tuple)) and len(entry) > 4 for entry in value)


def is_layer_indices(name: str, value: Any, count: int) -> bool:
    """Whether a field lists layers by their numbers."""
    words = ("layer", "index", "indices", "idx")
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and any(word in name for word in words)
        and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in value)
        and list(value) == sorted(set(value))
        and value[0] >= 0
        and value[-1] < count
    )


def renumbered(value: Sequence[int], kept: Sequence[int]) -> list[int]:
    """Numbers of layers among those that are kept; the last of them where none is.

    >>> renumbered([0, 3, 7], kept=[0, 1, 2, 3])
    [0, 3]
    """
    found = [kept.index(number) for number in value if number in kept]
    return found or [len(kept) - 1]
