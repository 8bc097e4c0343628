"""One layer's q/k/v, o and MLP, forward and backward, contender by contender: what was modelled.

What decides most comes first. What is compiled is asked last: a compiler takes longer than everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tools.gpu.cells import Cell, Setting
from tools.gpu.contenders import bench

CASES: dict[str, tuple[str, float]] = {
    "plain": (
        "--tokens 4096 --tokens 512 --tokens 16384 --precision A --precision B --precision C"
        " --only floor --only peft --only cast --only patchkit --only patchkit-fast",
        80.0,
    ),
    "dropout 0.05": (
        "--tokens 4096 --tokens 512 --precision A --precision B --dropout 0.05 --only peft --only patchkit",
        50.0,
    ),
    "rank 128": ("--tokens 4096 --precision A --rank 128 --only peft --only cast --only patchkit", 40.0),
    "compiled": (
        "--tokens 4096 --tokens 512 --precision A --precision B"
        " --only peft --only peft-compiled --only patchkit --only patchkit-compiled --only liger",
        100.0,
    ),
}
"""Options of ``patchkit bench --contenders``, and seconds."""

TINY = "--shape tiny --tokens 8 --precision float32 --rounds 1 --only peft"


def cells(setting: Setting) -> Sequence[Cell]:
    """One cell for each case."""
    if setting.tiny:
        return [cell_of(setting, "tiny", TINY, 90.0)]
    return [cell_of(setting, name, f"--shape llama-8b {said}", seconds) for name, (said, seconds) in CASES.items()]


def cell_of(setting: Setting, name: str, said: str, seconds: float) -> Cell:
    """A cell that runs the command; it ends by itself, with what it had."""
    return Cell(name, partial(bench, setting, said.split(), seconds), seconds + 15)
