"""The picture of ``patchkit bench --contenders``: a panel for each cell, a bar for each contender."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchkit.testing.contenders.results import CellResult

_OURS, _OTHERS, _FLOOR = "#d9480f", "#9aa5b1", "#2b8a3e"
_ACROSS = 3


def draw_cells(found: Sequence[CellResult], path: Path) -> None:
    """Write the picture, in the format that the file's name ends in: medians, quartiles, and what was modelled.

    Args:
        found: the cells; those in which nothing ran are left out.
        path: of the file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: nothing ran, so there is nothing to draw; or matplotlib does not know the format.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # before pyplot: there may be no display

    import matplotlib.pyplot as plt

    ran = [one for one in found if any(result.step_ms is not None for result in one.results)]
    if not ran:
        raise ValueError("nothing ran, so there is nothing to draw")
    across = min(_ACROSS, len(ran))
    down = -(-len(ran) // across)
    figure, axes = plt.subplots(down, across, figsize=(5 * across, 3.2 * down), squeeze=False)
    for one, axis in zip(ran, axes.flat, strict=False):
        _panel(axis, one)
    for axis in axes.flat[len(ran) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axes: Any, found: CellResult) -> None:
    labelled = False
    results = [one for one in reversed(found.results) if one.step_ms is not None]
    for row, one in enumerate(results):
        step: Any = one.step_ms
        ours = one.contender.startswith("patchkit")
        colour = _FLOOR if one.contender == "floor" else _OURS if ours else _OTHERS
        around = [[step.median - step.lower], [step.upper - step.median]]
        axes.barh(row, step.median, color=colour, height=0.6, xerr=around, error_kw={"linewidth": 1})
        if one.modelled_ms is not None:
            label = None if labelled else "modelled (roofline), not measured"
            axes.plot(one.modelled_ms, row, "D", color="white", markeredgecolor="black", markersize=5, label=label)
            labelled = True
    axes.set_yticks(range(len(results)), [one.contender for one in results], fontsize=8)
    axes.set_title(found.cell.title, loc="left", fontsize=9, fontweight="bold")
    axes.set_xlabel("ms per step, measured (median, quartiles)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if labelled:
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.18))
