"""``patchkit estimate``: what a training step of a configuration keeps and peaks at, without weights or a run."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchkit.cli.apply_options import ApplyOptions, apply_options
from patchkit.cli.check import progress_of
from patchkit.cli.console import error_console, output_console
from patchkit.cli.fitting import fitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchkit.estimation.result import Estimate

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class OptimizerChoice(str, Enum):
    """The kinds of optimizers (:data:`patchkit.estimation.optimizers.OPTIMIZERS`)."""

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    adafactor = "adafactor"
    momentum = "momentum"
    sgd = "sgd"


class DtypeChoice(str, Enum):
    """In which the base of a model can be."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def estimate(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A folder with a config.json, that file, or a name on the hub."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="A shape in place of CONFIG: llama-8b, llama-70b, qwen-0.5b, gemma-1b or gemma-4b."),
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="Tokens of each sequence: 4096, several as 512,4096, or each doubling as 512..131072.")
    ] = "4096",
    batch: Annotated[int, typer.Option(help="Number of sequences.", min=1)] = 1,
    card: Annotated[
        str | None, typer.Option(help="Memory of a device, such as 80GiB: show the longest context that fits.")
    ] = None,
    optimizer: Annotated[OptimizerChoice, typer.Option(help="Optimizer whose states are part of the peak.")] = (
        OptimizerChoice.adamw
    ),
    dtype: Annotated[DtypeChoice, typer.Option(help="Dtype of the base weights.")] = DtypeChoice.bfloat16,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.", min=1)] = 16,
    targets: Annotated[
        str, typer.Option(help="Names of the layers with adapters, separated by commas.")
    ] = "all-linear",
    dropout: Annotated[float, typer.Option(help="Dropout of the adapters.", min=0.0, max=0.99)] = 0.0,
    attention: Annotated[
        str, typer.Option(help="Implementation of transformers: sdpa, eager, or a package for flash attention.")
    ] = "sdpa",
    option: ApplyOptions = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate the memory of a LoRA training step of a configuration: plain, checkpointed, patched, without logits.

    Nothing is downloaded but a configuration, nothing of the model's size is allocated, and nothing is computed.
    """
    lengths = _lengths(tokens)
    if (config is None) == (shape is None):
        _refuse("give a CONFIG or --shape, one of them")
    if shape is not None:
        from patchkit.estimation.shapes import shape_named

        shape = shape_named(shape)
    with progress_of("counting") as advance:
        done = 0

        def note(name: str) -> None:
            nonlocal done
            advance(done, 8, f"counting {name}")
            done += 1

        from patchkit.estimation.estimate import estimates

        model = _model(str(config or shape), dtype.value, rank, targets, dropout, attention)
        found = estimates(
            model,
            lengths,
            batch=batch,
            optimizer=optimizer.value,
            card=card,
            options=apply_options(option),
            note=note,
        )
    if as_json:
        output_console(colour=False).print(json.dumps([one.as_dict() for one in found], indent=1))
    elif len(found) == 1:
        output_console().print(str(found[0]))
    else:
        _print_lengths(found)


def _refuse(why: str) -> None:
    error_console().print(f"patchkit: error: {why}")
    raise typer.Exit(2)


def _model(source: str, dtype: str, rank: int, targets: str, dropout: float, attention: str) -> Any:
    import torch

    from patchkit.estimation.configuration import Adapters, configuration_of, model_of

    named = targets if targets == "all-linear" else tuple(targets.split(","))
    config = configuration_of(source)
    return model_of(config, getattr(torch, dtype), Adapters(rank, named, dropout), attention=attention)


def _lengths(text: str) -> list[int]:
    """Numbers of tokens: ``4096``, ``512,4096`` or ``512..131072``, which doubles."""
    if found := _RANGE.fullmatch(text):
        first, last = int(found[1]), int(found[2])
        if 0 < first <= last:
            return [first << power for power in range((last // first).bit_length())]
    elif all(part.strip().isdecimal() for part in text.split(",")):
        lengths = [int(part) for part in text.split(",")]
        if all(lengths):
            return lengths
    _refuse(f"--tokens {text!r} is no number of tokens; write 4096, 512,4096 or 512..131072")
    raise AssertionError


def _print_lengths(found: Sequence[Estimate]) -> None:
    """A row for each way to train, and two columns for each number of tokens."""
    from rich.table import Table

    from patchkit.estimation.result import ASSUMED
    from patchkit.estimation.sizes import shown

    first = found[0]
    table = Table(title=f"{first.model}, batch {first.batch}: kept → peak", title_justify="left")
    table.add_column("training")
    for one in found:
        table.add_column(f"{one.tokens:,}", justify="right")
    if first.card:
        table.add_column("longest context", justify="right")
    for row, variant in enumerate(first.variants):
        steps = [one.variants[row] for one in found]
        cells = [f"{shown(step.bytes_kept)} → {shown(step.peak)}" for step in steps]
        if first.card:
            cells.append(f"{variant.longest:,}" if variant.longest else "-")
        table.add_row(variant.name, *cells)
    console = output_console()
    if not console.is_terminal:
        console.width = 60 + 24 * len(found)  # a file has no width of its own
    console.print(fitted(table, console))
    console.print(f"Assumed: {'; '.join(ASSUMED)}.")
