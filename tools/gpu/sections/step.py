"""A step of a stack of eight layers, and its peak of memory."""

from __future__ import annotations

from collections.abc import Sequence

from tools.gpu.cells import Cell, Setting
from tools.gpu.sections.layer import TINY, cell_of

_ONLY = "--only peft --only cast --only patchkit"

CASES: dict[str, tuple[str, float]] = {
    "8 layers": (f"--tokens 4096 --precision A --precision B {_ONLY}", 60.0),
    "8 layers, checkpointing": (f"--tokens 4096 --precision B --checkpointing {_ONLY}", 45.0),
    "8 layers, 16384 tokens": (f"--tokens 16384 --precision B {_ONLY}", 45.0),
}


def cells(setting: Setting) -> Sequence[Cell]:
    """One cell for each case."""
    if setting.tiny:
        return [cell_of(setting, "tiny", f"{TINY} --layers 2", 90.0)]
    common = "--shape llama-8b --layers 8"
    return [cell_of(setting, name, f"{common} {said}", seconds) for name, (said, seconds) in CASES.items()]
