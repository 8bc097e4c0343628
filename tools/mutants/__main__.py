"""``python -m tools.mutants``: see the package."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.mutants import selection
from tools.mutants.equivalent import read_equivalents
from tools.mutants.known import KnownFaultError
from tools.mutants.mirror import Mirror, MirrorError, read_mirror
from tools.mutants.mutant import Mutant
from tools.mutants.results import Result, Store
from tools.mutants.running import FailsUnmutatedError, Runner
from tools.mutants.tables import difference, summary, tally

ROOT = Path(__file__).parents[2]
RESULTS = Path(".mutants/results.jsonl")


def command(
    room: Annotated[list[str] | None, typer.Option(help="kernels, runtime, ...; repeatable; else all")] = None,
    seed: Annotated[int, typer.Option(help="another one draws another sample")] = 1,
    size: Annotated[int, typer.Option("--sample", min=1, help="how many mutants")] = 60,
    jobs: Annotated[int, typer.Option(min=1, help="how many at once")] = 1,
    files: Annotated[str, typer.Option(help="only of files that match this pattern")] = "*",
    operators: Annotated[str, typer.Option(help="only of operators that match this pattern")] = "*",
    results: Annotated[Path, typer.Option(help="where results are kept, so that a run can go on")] = RESULTS,
    at_least: Annotated[float, typer.Option(help="the kill rate below which this ends with 1")] = 0.9,
    known: Annotated[bool, typer.Option("--known", help="the faults that tests once missed, and no sample")] = False,
    show: Annotated[bool, typer.Option("--list", help="show the mutants as diffs and run nothing")] = False,
) -> None:
    """Put silent faults into the source, one at a time, and see whether the tests that mirror the file notice.

    Ends with 0 if the kill rate is high enough, with 1 if not, and with 2 if the tests cannot be run.
    """
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    mirror, began = read_mirror(ROOT), time.monotonic()
    unknown = sorted(set(room or ()) - set(mirror.rooms))
    if unknown:
        raise typer.BadParameter(f"there is no room {unknown[0]!r}; there are {', '.join(mirror.rooms)}")
    wanted = selection.Wanted(tuple(room or mirror.rooms), files, operators)
    try:
        chosen = selection.known(mirror, wanted) if known else selection.sampled(mirror, wanted, size, seed)
        everything = [mutant for found in chosen.values() for mutant in found]
        if show:
            for mutant in everything:
                console.print(difference(mutant, mirror.text(mutant.file)))
            return
        equivalents = read_equivalents()
        equivalent = {m.key: why for m in everything if (why := equivalents.argument(m)) is not None}
        with tempfile.TemporaryDirectory(prefix="patchkit-mutants-", ignore_cleanup_errors=True) as folder:
            runner = Runner(mirror, Store(results), Path(folder), jobs, console.print)
            outcomes = runner.run([mutant for mutant in everything if mutant.key not in equivalent])
    except (FailsUnmutatedError, KnownFaultError, MirrorError) as error:
        Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True).print(
            f"mutants: error: {error}"
        )
        raise typer.Exit(2) from None
    _show(console, mirror, chosen, outcomes, equivalent)
    whole = tally(everything, outcomes, equivalent)
    which = "known faults" if known else f"seed {seed}"
    console.print(
        f"{which}: {len(everything)} mutants in {(time.monotonic() - began) / 60:.0f} min, {whole.loud} of the killed "
        f"without a test (not importable, or dead); results in {results}"
    )
    if runner.red:
        console.print(f"fail without a fault, and were left out: {', '.join(sorted(runner.red))}")
        raise typer.Exit(2)
    if whole.rate is not None and whole.rate < at_least:
        raise typer.Exit(1)


def _show(
    console: Console,
    mirror: Mirror,
    chosen: Mapping[str, Sequence[Mutant]],
    outcomes: Mapping[str, Result],
    equivalent: Mapping[str, str],
) -> None:
    for mutant in (mutant for found in chosen.values() for mutant in found):
        if mutant.key not in equivalent and outcomes[mutant.key].verdict != "killed":
            console.print(f"\n{outcomes[mutant.key].verdict}:\n{difference(mutant, mirror.text(mutant.file))}")
    console.print(summary({room: tally(found, outcomes, equivalent) for room, found in chosen.items()}))


if __name__ == "__main__":
    typer.run(command)
