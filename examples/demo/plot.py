"""The picture: both loss curves, and bars for memory and time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: there may be no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from examples.demo.training import Run

PLAIN, PATCHED = "#9aa5b1", "#d9480f"


def draw(plain: Run, patched: Run, title: str, path: Path) -> None:
    """Write the picture as a PNG file."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.4), width_ratios=(2.2, 1, 1))
    figure.suptitle(title, x=0.02, horizontalalignment="left", fontsize=13)
    _losses(axes[0], plain, patched)
    _bars(axes[1], "kept for the backward pass", "MB", "{:.0f}", (plain.saved_bytes / 1e6, patched.saved_bytes / 1e6))
    _bars(axes[2], "time per step (median)", "s", "{:.3g}", (plain.median_seconds, patched.median_seconds))
    figure.tight_layout(w_pad=3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _losses(axes: Axes, plain: Run, patched: Run) -> None:
    steps = range(1, len(plain.losses) + 1)
    axes.plot(steps, plain.losses, color=PLAIN, linewidth=6, solid_capstyle="round", label=plain.name)
    axes.plot(steps, patched.losses, color=PATCHED, linewidth=1.6, marker="o", markersize=4, label=patched.name)
    _style(axes, "training loss")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def _bars(axes: Axes, title: str, unit: str, number: str, values: tuple[float, float]) -> None:
    bars = axes.bar(("plain", "patched"), values, color=(PLAIN, PATCHED), width=0.6)
    axes.bar_label(bars, labels=[f"{number.format(value)} {unit}" for value in values], padding=3)
    axes.set_xlabel(f"ratio {values[1] / values[0]:.2f}")
    _style(axes, title)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(y=0.15)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
