"""What a training step keeps and peaks at, for two shapes and 512 to 131,072 tokens: ``python benchmarks/memory.py``.

Everything is counted (see :func:`patchkit.estimate`), and nothing is run: the figures are the same on every machine.
``--draw`` makes the picture of the figures that are there.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from patchkit.estimation.configuration import Adapters, configuration_of, model_of
from patchkit.estimation.estimate import estimates
from patchkit.version import __version__

ROOT = Path(__file__).parents[1]
FIGURES, PICTURE = ROOT / "benchmarks" / "results" / "memory.json", ROOT / "docs" / "memory.svg"
DRAWN = ("llama-8b", "gemma-3-1b")
LENGTHS = [512 << power for power in range(9)]
ADAPTERS = Adapters(rank=16)
ATTENTION = "flash_attention_2"
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"loss": True, "memory": "recompute"}, {"loss": True, "memory": "tiled"})
COLOURS = {
    "plain": "#9aa5b1",
    "patched": "#d9480f",
    "patched, loss=True": "#2b8a3e",
    "patched, loss=True, memory=tiled": "#1864ab",
}
"""Which are drawn: the peak of what is made again in one piece is nearly that without the option."""


def count() -> dict[str, Any]:
    """The figures of every shape."""
    shapes = {}
    for name in DRAWN:
        model = model_of(configuration_of(name), torch.bfloat16, ADAPTERS, attention=ATTENTION)
        by_options = [[one.as_dict() for one in estimates(model, LENGTHS, options=options)] for options in OPTIONS]
        shapes[name] = [_together(several) for several in zip(*by_options, strict=True)]
    return {
        "settings": {
            "patchkit": __version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "torch": torch.__version__.split("+")[0],
            "dtype": "bfloat16, adapters float32",
            "adapters": ADAPTERS._asdict(),
            "attention": ATTENTION,
        },
        "shapes": shapes,
    }


def _together(several: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One estimate with the variants of several: each comes with the plain model again."""
    variants = {variant["name"]: variant for one in several for variant in one["variants"]}
    return {**several[0], "variants": list(variants.values())}


def draw(figures: dict[str, Any], path: Path) -> None:
    """Write the picture: for each shape the peak over tokens, a line for each way to train."""
    import matplotlib as mpl

    mpl.use("Agg")  # before pyplot: there may be no display
    mpl.rcParams["svg.hashsalt"] = "patchkit"  # the same figures give the same file

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(figures["shapes"]), figsize=(12, 5), sharey=True, squeeze=False)
    for one, (name, estimated) in zip(axes[0], figures["shapes"].items(), strict=True):
        _lines(one, estimated)
        one.set_title(f"{name}: peak of a step", loc="left", fontsize=11, fontweight="bold")
    axes[0][0].set_ylabel("GiB")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout(w_pad=3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _lines(axes: Any, estimated: list[dict[str, Any]]) -> None:
    tokens = [one["tokens"] for one in estimated]
    for row, variant in enumerate(estimated[0]["variants"]):
        model = variant["name"].partition(", checkpointed")[0].partition(", offloaded")[0]
        if variant["offload"] or model not in COLOURS:
            continue
        peaks = [one["variants"][row]["peak"] / 2**30 for one in estimated]
        style = "--" if variant["checkpointing"] else "-"
        axes.plot(tokens, peaks, style, color=COLOURS[model], label=variant["name"], linewidth=1.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(tokens, [f"{one // 1024}k" if one >= 1024 else str(one) for one in tokens])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for card in (24, 80):
        axes.axhline(card, color="black", linewidth=0.6, alpha=0.5)
        axes.text(tokens[0], card * 1.05, f"{card} GiB", fontsize=7, alpha=0.7)
    axes.set_xlabel("tokens")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)


def main() -> None:
    """Count, write the figures, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="do not count, only draw what was counted")
    parser.add_argument("--json", type=Path, default=FIGURES, metavar="FILE", help="the figures")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE", help="the picture")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if not options.draw:
        options.json.write_text(json.dumps(count(), indent=1) + "\n")
    draw(json.loads(options.json.read_text()), options.picture)


if __name__ == "__main__":
    main()
