"""The table of ``patchkit bench --families``: on the terminal, and for ``benchmarks/README.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchkit.cli.console import output_console
from patchkit.cli.fitting import fitted

if TYPE_CHECKING:
    from patchkit.check.numeric.families import FamilyComparison
    from patchkit.testing import Cost

HEADINGS = (
    "model type",
    "what is particular",
    "layers in blocks",
    "alone",
    "upstream",
    "bytes kept, float32",
    "ops",
    "bytes kept, bfloat16 and float32 adapters",
    "ops",
    "rounding of logits",
    "of gradients",
)

_SHORT = (
    "model type",
    "fused, alone, upstream",
    "bytes",
    "ops",
    "mixed: bytes",
    "ops",
    "rounding: logits",
    "gradients",
)


def _ratios(pair: tuple[Cost, Cost] | None) -> list[str]:
    if pair is None:
        return ["–", "–"]
    plain, patched = pair
    return [f"{patched.bytes_kept / plain.bytes_kept:.2f}", f"{patched.compute_ops / plain.compute_ops:.2f}"]


def _figures(one: FamilyComparison) -> list[str]:
    rounding = ["–", "–"] if one.rounding is None else [f"{ratio:.2f}" for ratio in one.rounding]
    return [*_ratios(one.single), *_ratios(one.mixed), *rounding]


def print_families(found: list[FamilyComparison]) -> None:
    """The ratios, on the terminal."""
    from rich.table import Table

    table = Table(title="families, patched against plain PEFT (ratios are patched / plain)", title_justify="left")
    table.add_column(_SHORT[0])
    for heading in _SHORT[1:]:
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(one.family.model_type, f"{one.whole}, {one.alone}, {one.left}", *_figures(one))
    console = output_console()
    if not console.is_terminal:
        console.width = 120  # a file has no width of its own
    console.print(fitted(table, console))


def markdown_of_families(found: list[FamilyComparison]) -> str:
    """The section of ``benchmarks/README.md``."""
    from patchkit.check.numeric.families import ALPHA, BATCH, LENGTH, PRECISION_CHECK, RANK

    lines = [
        "",
        "# What each family of models costs",
        "",
        "Each row is one small random model of a family, with LoRA on every linear layer that PEFT takes, experts and "
        f"routers included: rank {RANK}, alpha {ALPHA}, {BATCH} × {LENGTH} tokens, or images and sound. Ratios are "
        "patched / plain PEFT, for the whole model. The columns:",
        "",
        "* **in blocks, alone, upstream**: how many adapted layers run in one fused function with others, fused one by "
        "one, or by the code of transformers and PEFT.",
        "* **rounding**: patchkit's error in bfloat16 against float64, relative to PEFT's own error "
        f"(`{PRECISION_CHECK}`: a bfloat16 base and float32 adapters under autocast, 8 draws). The limit is 1.1.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|---|" + "--:|" * (len(HEADINGS) - 2),
    ]
    for one in found:
        counts = [str(one.whole), str(one.alone), str(one.left)]
        lines.append("| " + " | ".join([one.family.model_type, one.family.shows, *counts, *_figures(one)]) + " |")
    return "\n".join(lines) + "\n"
