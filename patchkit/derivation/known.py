"""What a class is described as: by an architecture file, or else by its own source."""

from __future__ import annotations

import inspect
from typing import Any

from patchkit.arch.discovery import registered
from patchkit.arch.spec import Architecture, Block
from patchkit.derivation.derive import derive
from patchkit.module_tree import forget_replaced, unpatched

NOT_ASKED = frozenset({"torch", "peft", "builtins", "patchkit"})
"""Packages whose classes are no blocks."""

_derived: dict[tuple[Any, ...], tuple[Architecture, Block] | None] = {}


def described(cls: type) -> tuple[Architecture, Block] | None:
    """The entry of the architecture file that names a class, or what is derived from its source; None for neither.

    What is derived is kept as long as ``forward`` of the class stays the same.

    Args:
        cls: a class, patched or not.
    """
    entry = registered(cls)
    if entry is not None:
        return entry
    cls = unpatched(cls)
    if cls.__module__.partition(".")[0] in NOT_ASKED:
        return None
    key = (cls, inspect.getattr_static(cls, "forward", None))
    if key not in _derived:
        forget_replaced(_derived, cls)
        block = derive(cls)
        _derived[key] = None if isinstance(block, str) else (architecture_of(cls, block), block)
    return _derived[key]


def architecture_of(cls: type, block: Block) -> Architecture:
    """An architecture of this block alone, named as the file that the class is from."""
    name = cls.__module__.rpartition(".")[2].removeprefix("modeling_")
    return Architecture(name, (), cls.__module__, (block,))
