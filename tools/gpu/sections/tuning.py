"""What ``patchkit tune`` asks: a cell for each kernel's tiles, and one for the ways. ``apply`` uses nothing of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from patchkit.tuning import questions
from patchkit.tuning.launches import ABOUT, tiles
from patchkit.tuning.tune import chosen_ways
from patchkit_kernels.ops.launch_sizes import GRID
from tools.gpu.cells import Cell, NotRun, Setting
from tools.gpu.sections.choices import LLAMA_8B


def cells(setting: Setting) -> Sequence[Cell]:
    """The activations' tiles, which every step uses; then the ways, which may be off."""
    ways = Cell("ways", partial(_ways, setting), 120.0)
    return [Cell(f"tiles: {ABOUT[field]}", partial(_tiles, setting, field)) for field in GRID] + [ways]


def _asking(setting: Setting) -> questions.Setting:
    shape = questions.TINY if setting.tiny else LLAMA_8B
    return questions.Setting(setting.device, shape, 2 if setting.tiny else 10)


def _tiles(setting: Setting, field: str) -> dict[str, Any]:
    asking = _asking(setting)
    answer = questions.ask(tiles(field, asking), asking)
    if answer.tried[0].reason:
        raise NotRun(answer.tried[0].reason)
    return figures(answer)


def _ways(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {}
    asking = _asking(setting)

    def put(question: questions.Question) -> questions.Answer:
        answer = questions.ask(question, asking)
        found.update({f"{answer.title}: {name}": value for name, value in figures(answer).items()})
        return answer

    chosen: Mapping[str, int] = chosen_ways(asking, put)
    return found | {f"chosen: {name}": value for name, value in chosen.items()}


def figures(answer: questions.Answer) -> dict[str, Any]:
    """The time of each candidate, or why it has none; and the best one."""
    found: dict[str, Any] = {"best": answer.tried[answer.best].label}
    for one in answer.tried:
        found |= {f"{one.label} us": one.microseconds} if one.microseconds is not None else {one.label: one.reason}
    return found
