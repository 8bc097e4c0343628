"""``patchkit tune``: which sizes of launches and which ways of computing are the fastest on this machine's device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchkit.cli.check import progress_of
from patchkit.cli.console import error_console, output_console
from patchkit.cli.devices import require_device
from patchkit.cli.fitting import fitted, plain_table
from patchkit.version import __version__

if TYPE_CHECKING:
    from patchkit.tuning.questions import Answer, Shape
    from patchkit.tuning.record import Tuned

_NOTHING = "On a CPU torch's own operations run, and there is nothing to tune."


def tune(
    device: Annotated[str, typer.Option(help="Device to tune for: cuda, cuda:1, xpu.")] = "cuda",
    shape: Annotated[str, typer.Option(help="Widths to measure at: llama-8b, llama-70b, qwen-0.5b, ...")] = "llama-8b",
    tokens: Annotated[int, typer.Option(help="Tokens of a batch to measure at.", min=1)] = 4096,
    rounds: Annotated[int, typer.Option(help="Samples of each candidate.", min=1)] = 15,
    show: Annotated[bool, typer.Option("--show", help="Show what was found before; measure nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and keep nothing.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found as JSON.")] = None,
) -> None:
    """Measure on a GPU what only that GPU can decide, once (minutes); `apply` uses what was found from then on.

    Each candidate has to give the usual results before its time counts. A candidate is taken if it is faster by 2 %.

    What was found is kept in the cache directory, for this kind of device and these versions.
    `patchkit cache` shows it as the entry tuned, which can be cleared.
    """
    if device.partition(":")[0] == "cpu":
        error_console().print(f"patchkit: error: {_NOTHING}")
        raise typer.Exit(2)
    require_device(device, _NOTHING)
    import torch

    from patchkit.tuning import record

    try:
        description = record.described(torch.device(device))
    except ImportError as error:
        error_console().print("patchkit: error: triton is not installed; without it no kernel runs, on any device")
        raise typer.Exit(2) from error
    found = record.load(description) if show else measured(device, _shape(shape, tokens), rounds)
    console = output_console()
    if found is None:
        console.print(f"{description['device']} was not tuned with these versions; `patchkit tune` does it.")
        raise typer.Exit(1)
    print_tuned(found, description["device"])
    if not (show or dry_run):
        console.print(f"\nkept: {record.save(found, description)}")
    if json_file:
        everything = {"patchkit": __version__, **description, **found.to_json()}
        json_file.write_text(json.dumps(everything, indent=1) + "\n", "utf-8")


def _shape(name: str, tokens: int) -> Shape:
    from patchkit.estimation.shapes import SHAPES, shape_named
    from patchkit.tuning.questions import Shape

    name = shape_named(name)
    sizes = SHAPES[name][1]
    return Shape(name, sizes["hidden_size"], sizes["intermediate_size"], tokens)


def measured(device: str, shape: Shape, rounds: int) -> Tuned:
    """Ask everything; standard error shows what is being asked."""
    from patchkit.tuning.questions import Setting
    from patchkit.tuning.tune import AT_MOST
    from patchkit.tuning.tune import tune as ask_all

    done = 0

    def count(_: Answer) -> None:
        nonlocal done
        done += 1

    with progress_of("tuning") as advance:
        return ask_all(Setting(device, shape, rounds), lambda title: advance(done, AT_MOST, title), count)


def print_tuned(found: Tuned, device: str) -> None:
    """A row for each question; then what is used."""
    table = plain_table(f"{device}, {found.shape.name}, {found.shape.tokens} tokens, {found.date}")
    for heading in ("question", "usual", "µs", "best", "ratio"):
        table.add_column(heading, justify="right" if heading in ("µs", "ratio") else "left")
    notes = []
    for answer in found.answers:
        usual, best = answer.tried[0], answer.tried[answer.best]
        ratio = f"{best.ratio:.2f}" if answer.best and best.ratio else ""
        time = f"{usual.microseconds:.1f}" if usual.microseconds else ""
        table.add_row(answer.title, usual.label, time, best.label if answer.best else "as usual", ratio)
        notes += [f"{answer.title}: {one.label} did not count: {one.reason}" for one in answer.tried if one.reason]
    console = output_console()
    console.print(fitted(table, console))
    for note in notes:
        console.print(note)
    for line in found.lines():
        console.print(line)
