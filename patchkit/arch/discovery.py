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
    known = blocks_by_class()
    for name, module in named_modules(model):
        for cls in type(module).__mro__:
            entry = known.get((cls.__module__, cls.__qualname__))
            if entry is not None:
                yield Found(name, module, *entry)
                break
