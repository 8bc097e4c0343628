"""Find the registered blocks in a live model, wherever they sit: wrappers of any kind make no difference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from patchkit.arch.registry import blocks_by_class
from patchkit.arch.spec import Architecture, Block
from patchkit.module_tree import named_modules

if TYPE_CHECKING:
    from torch import nn


class Found(NamedTuple):
    """A module of a model that is a registered block.

    Attributes:
        name: its qualified name in the model.
        module: the module.
        architecture: the architecture whose file names its class (or a base of it).
        block: the entry of that file.
    """

    name: str
    module: nn.Module
    architecture: Architecture
    block: Block


def find_blocks(model: nn.Module) -> Iterator[Found]:
    """Every registered block of a model, in the order of ``model.named_modules()``; a shared module once."""
    for name, module in named_modules(model):
        entry = registered(type(module))
        if entry is not None:
            yield Found(name, module, *entry)


def registered(cls: type) -> tuple[Architecture, Block] | None:
    """The entry of an architecture file that names a class, or else the nearest of its bases; None if none does."""
    known = blocks_by_class()
    for base in cls.__mro__:
        entry = known.get((base.__module__, base.__qualname__))
        if entry is not None:
            return entry
    return None
