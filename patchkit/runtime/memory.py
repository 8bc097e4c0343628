"""The option ``memory`` of ``patchkit.apply``, and what of it an MLP can do."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from patchkit.adapters.protocol import Reason
from patchkit.runtime.levels import Ready
from patchkit_kernels.lora.memory import RECOMPUTE, TILED, Memory

MEMORY_VALUES = "None, 'recompute', 'tiled', or 'tiled:N' for N tiles"

_TILES = re.compile(r"tiled:([1-9][0-9]{0,8})")
_NOT_BY_ROWS: Reason = "a product with its quantised weight depends on all tokens at once, so that it is not tiled"


def memory_of(option: object) -> Memory | None:
    """What the option asks for; None for nothing.

    Raises:
        ValueError: it is none of :data:`MEMORY_VALUES`.
    """
    if option is None:
        return None
    if isinstance(option, str):
        if option == "recompute":
            return RECOMPUTE
        if option == "tiled":
            return TILED
        if found := _TILES.fullmatch(option):
            return Memory(int(found[1]))
    raise ValueError(f"takes {MEMORY_VALUES}, found {option!r}")


def fitting(memory: Memory, readings: Sequence[Ready | Reason]) -> tuple[Memory, Reason]:
    """What is done where this is asked for, and why it is less; an empty reason where it is not.

    Args:
        memory: what is asked for.
        readings: of all projections of an MLP that runs fused.
    """
    if memory == RECOMPUTE or all(_by_rows(reading) for reading in readings):
        return memory, ""
    return RECOMPUTE, _NOT_BY_ROWS


def _by_rows(reading: Ready | Reason) -> bool:
    """Whether a row of a projection's output depends on that row of its input alone."""
    weight = reading.projection.weight if isinstance(reading, Ready) else None
    return isinstance(weight, Tensor) or getattr(weight, "by_rows", False) is True
