"""The sections in their order, with their share of the time."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

from tools.gpu.cells import Cell, Setting


@dataclass(frozen=True)
class Section:
    """One kind of question.

    Attributes:
        name: what ``--only`` takes; also that of its file in ``tools/gpu/sections``.
        title: for people.
        share: of the time that is left when it begins, relative to those after it.
        processes: how many may ask its cells at once; more than one only where nothing is timed.
    """

    name: str
    title: str
    share: float
    processes: int = 1

    def cells(self, setting: Setting) -> Sequence[Cell]:
        """Its cells, the most important ones first. May raise whatever an import can raise."""
        module = importlib.import_module(f"tools.gpu.sections.{self.name}")
        found: Sequence[Cell] = module.cells(setting)
        return found


# The first one reads every package from a cold disk; what it does not take goes to those after it.
SECTIONS = (
    Section("environment", "what is here", 45),
    Section("kernels", "kernels and fused functions against float64", 110, processes=8),
    Section("contract", "the parity contract on the device", 130, processes=6),
    Section("micro", "facts of single operations", 40),
    Section("choices", "ways of computing the same", 20),
    Section("tuning", "what `patchkit tune` finds", 60),
    Section("layer", "one layer, contender by contender", 190),
    Section("step", "eight layers: time and peak memory", 65),
    Section("graphs", "CUDA graphs and torch.compile(fullgraph=True)", 50, processes=4),
)
