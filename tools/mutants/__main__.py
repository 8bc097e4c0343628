"""``python -m tools.mutants``: see the package."""

from __future__ import annotations

import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.mutants.equivalent import read_equivalents
from tools.mutants.finding import is_fault, mutants_of
from tools.mutants.mirror import MirrorError, read_mirror
from tools.mutants.mutant import Mutant
from tools.mutants.results import Store
from tools.mutants.running import FailsUnmutatedError, Runner
from tools.mutants.sample import sample
from tools.mutants.tables import difference, summary, tally

ROOT = Path(__file__).parents[2]


def command(
    rooms: Annotated[
        list[str] | None, typer.Option("--room", help="kernels, runtime, ...; repeatable; else all")
    ] = None,
    seed: Annotated[int, typer.Option(help="another one draws another sample")] = 1,
    size: Annotated[int, typer.Option("--sample", min=1, help="how many mutants")] = 60,
    jobs: Annotated[int, typer.Option(min=1, help="how many at once")] = 1,
    files: Annotated[str, typer.Option("--files", help="only of files that match this pattern")] = "*",
    operators: Annotated[str, typer.Option("--operators", help="only of operators that match this pattern")] = "*",
    results: Annotated[Path, typer.Option(help="where results are kept, so that a run can go on")] = Path(
        ".mutants/results.jsonl"
    ),
    at_least: Annotated[float, typer.Option(help="the kill rate below which this ends with 1")] = 0.9,
    show: Annotated[bool, typer.Option("--list", help="show the sample as diffs and run nothing")] = False,
) -> None:
    """Put silent faults into the source, one at a time, and see whether the tests that mirror the file notice.

    Ends with 0 if the kill rate is high enough, with 1 if not, and with 2 if the tests cannot be run.
    """
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160  # a file has no width of its own
    mirror, equivalents, began = read_mirror(ROOT), read_equivalents(), time.monotonic()
    chosen: dict[str, list[Mutant]] = {}
    texts: dict[str, str] = {}
    for room in rooms or mirror.rooms:
        if room not in mirror.rooms:
            raise typer.BadParameter(f"there is no room {room!r}; there are {', '.join(mirror.rooms)}")
        for file in (file for file in mirror.sources(room) if fnmatch(file, files)):
            texts[file] = (ROOT / file).read_text("utf-8")
            found = mutants_of(file, texts[file])
            chosen.setdefault(room, []).extend(mutant for mutant in found if fnmatch(mutant.operator, operators))
    console.print(f"{sum(map(len, chosen.values()))} mutants in {len(texts)} files")
    drawn = sample(chosen, size, seed, lambda mutant: is_fault(mutant, texts[mutant.file]))
    everything = [mutant for found in drawn.values() for mutant in found]
    if show:
        for mutant in everything:
            console.print(difference(mutant, texts[mutant.file]), soft_wrap=True)
        return
    equivalent = {m.key: why for m in everything if (why := equivalents.argument(m)) is not None}
    try:
        with tempfile.TemporaryDirectory(prefix="patchkit-mutants-") as folder:
            runner = Runner(
                mirror, Store(results), Path(folder), jobs, lambda line: console.print(line, soft_wrap=True)
            )
            outcomes = runner.run([mutant for mutant in everything if mutant.key not in equivalent])
    except (FailsUnmutatedError, MirrorError) as error:
        Console(stderr=True, highlight=False, markup=False).print(f"mutants: error: {error}")
        raise typer.Exit(2) from None
    for mutant in everything:
        if mutant.key not in equivalent and outcomes[mutant.key].verdict != "killed":
            console.print(
                f"\n{outcomes[mutant.key].verdict}:\n{difference(mutant, texts[mutant.file])}", soft_wrap=True
            )
    tallies = {room: tally(found, outcomes, equivalent) for room, found in drawn.items()}
    console.print(summary(tallies))
    whole = tally(everything, outcomes, equivalent)
    console.print(
        f"seed {seed}, {len(everything)} mutants, {whole.loud} of the killed not importable or dead, "
        f"{(time.monotonic() - began) / 60:.0f} min; results in {results}"
    )
    if whole.rate is not None and whole.rate < at_least:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command)
