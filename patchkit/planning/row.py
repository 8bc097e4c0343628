"""A row of the report: one part of one module, the level at which it runs, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchkit.arch.spec import Part
    from patchkit.runtime.levels import Level


@dataclass(frozen=True)
class Row:
    """One part of one module.

    Attributes:
        name: qualified name of the module in the model.
        module_class: name of its upstream class; of a linear layer, the class that holds it and its name there.
        part: ``qkv``, ``o``, ``mlp``, ``linear``, ``experts``, ``embedding``, ``head``, ``loss`` or
            ``norm``.
        level: the level at which it would run now; at every call it is chosen anew.
        reason: why it is not fused, or not with others as its source proposes; empty if it is.
        expected: whether upstream is where it belongs (there is no adapter to fuse), so that nobody need be warned.
        layers: of several linear layers that read one variable, their names in the module; else empty.
        memory: of an MLP or a norm, how it saves memory in training: ``recompute``, ``tiled`` or ``tiled:N``; empty
            if it does not. Where it is not what was asked for, ``reason`` says why.
    """

    name: str
    module_class: str
    part: Part
    level: Level
    reason: str = ""
    expected: bool = False
    layers: tuple[str, ...] = ()
    memory: str = ""
