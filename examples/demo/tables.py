"""What the demo prints of the two runs: progress bars and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.demo.training import Run, relative_differences


def show_training(console: Console, runs: Sequence[Run], steps: Iterator[Run], count: int) -> None:
    """Carry out the steps with a progress bar for each run."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[seconds]:.2f} s/step"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {run.name: progress.add_task(run.name, total=count, loss=0.0, seconds=0.0) for run in runs}
        for run in steps:
            progress.update(tasks[run.name], advance=1, loss=run.losses[-1], seconds=run.median_seconds)


def loss_table(plain: Run, patched: Run) -> Table:
    """The losses of both runs side by side."""
    table = Table(title="loss, step by step")
    for title in ("step", plain.name, patched.name, "relative difference"):
        table.add_column(title, justify="right")
    differences = relative_differences(plain.losses, patched.losses)
    for step, row in enumerate(zip(plain.losses, patched.losses, differences, strict=True), start=1):
        table.add_row(str(step), f"{row[0]:.6f}", f"{row[1]:.6f}", f"{row[2]:.1e}")
    return table


def summary_table(plain: Run, patched: Run) -> Table:
    """Time and memory of both runs."""
    table = Table(title="what it costs")
    table.add_column("")
    for title in (plain.name, patched.name, "ratio"):
        table.add_column(title, justify="right")
    for title, seconds in (
        ("seconds per step, median", (plain.median_seconds, patched.median_seconds)),
        ("seconds per step, fastest", (min(plain.seconds), min(patched.seconds))),
    ):
        table.add_row(title, f"{seconds[0]:.3f}", f"{seconds[1]:.3f}", f"{seconds[1] / seconds[0]:.2f}")
    for title, sizes in (
        ("kept for the backward pass, MB", (plain.saved_bytes, patched.saved_bytes)),
        ("  of that, by the layers, MB", (plain.layers_saved_bytes, patched.layers_saved_bytes)),
    ):
        table.add_row(title, f"{sizes[0] / 1e6:.1f}", f"{sizes[1] / 1e6:.1f}", f"{sizes[1] / sizes[0]:.2f}")
    return table
