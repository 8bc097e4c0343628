"""``python -m tools.peft_suite PATH``: see the package."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import track

from tools.peft_suite import tables
from tools.peft_suite.outcomes import BLOCKS, FUSED, MODELS, REFUSED, Comparison, Run, compare, differing
from tools.peft_suite.runner import Suite, SuiteError, check_source, hub_is_reachable, versions
from tools.peft_suite.stand_ins import write_stand_ins

StandIns = Literal["auto", "always", "never"]


def command(
    source: Annotated[Path, typer.Argument(help="a checkout of PEFT, or an unpacked source distribution")],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="of pytest, after --: tests/test_mixed.py, -k llama, ...; else all tests")
    ] = None,
    stand_ins: Annotated[
        StandIns, typer.Option(help="tiny random models under the hub's names; auto: where the hub is not reachable")
    ] = "auto",
    jobs: Annotated[int, typer.Option(min=1, help="test processes")] = os.cpu_count() or 1,
    repeats: Annotated[int, typer.Option(min=0, help="how often tests that differ are run again, both ways")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the outcome of every test here")] = None,
) -> None:
    """Run PEFT's tests plain and patched, and compare them test by test.

    Ends with 0 if every test has the same result in both runs and at least one called a fused function and passed,
    with 1 if not, and with 2 if the tests cannot be run.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file has no width of its own
    began = time.monotonic()
    try:
        check_source(source)
        with tempfile.TemporaryDirectory(prefix="patchkit-peft-") as folder:
            home = Path(folder) / "hub"
            use = stand_ins == "always" or (stand_ins == "auto" and not hub_is_reachable())
            if use:
                _build(home, console)
            suite = Suite(source.resolve(), Path(folder), home if use else None, jobs)
            comparison = _compare(suite, arguments or [], repeats, console)
    except SuiteError as error:
        Console(stderr=True, highlight=False, markup=False).print(f"peft_suite: error: {error}")
        raise typer.Exit(2) from None
    _print(comparison, console, time.monotonic() - began, versions(source))
    if json_file:
        json_file.write_text(json.dumps({"versions": versions(source), **_as_json(comparison)}, indent=1) + "\n")
    if comparison.faults or not comparison.fused:
        raise typer.Exit(1)


def _build(home: Path, console: Console) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for stand_in, error in track(write_stand_ins(home), description="building stand-ins", console=console):
        if error is not None:
            console.print(f"no stand-in for {stand_in.repository}: {type(error).__name__}: {error}", markup=False)


def _compare(suite: Suite, arguments: list[str], repeats: int, console: Console) -> Comparison:
    console.rule("plain", align="left")
    plain: Run = suite.run(arguments, patched=False, name="plain")
    console.rule("patched", align="left")
    patched: Run = suite.run(arguments, patched=True, name="patched")
    again: list[tuple[Run, Run]] = []
    tests = list(differing(plain, patched))
    for turn in range(repeats if tests else 0):
        console.rule(f"{len(tests)} tests that differ, again ({turn + 1} of {repeats})", align="left")
        alone = Suite(suite.source, suite.work, suite.stand_ins, jobs=1)
        again.append(
            (
                alone.run(tests, patched=False, name=f"plain-{turn}"),
                alone.run(tests, patched=True, name=f"patched-{turn}"),
            )
        )
    return compare(plain, patched, again)


def _print(comparison: Comparison, console: Console, seconds: float, packages: Mapping[str, str]) -> None:
    console.print(tables.summary(comparison))
    failures = tables.failures(comparison)
    if failures.row_count:
        console.print(failures)
    if comparison.differences:
        console.print(tables.differences(comparison))
    for test in comparison.other_errors:
        plain, patched = comparison.plain[test].error_type, comparison.patched[test].error_type
        console.print(f"fails in both runs, with two exceptions ({plain}, {patched}): {test}", markup=False)
    counts, faults = comparison.counts, len(comparison.faults)
    console.print(
        f"{', '.join(' '.join(item) for item in packages.items())}: {len(comparison.plain)} tests, twice, "
        f"in {seconds / 60:.0f} min"
    )
    console.print(
        f"{comparison.results['passed']} pass in both runs, {len(comparison.patched_tests)} with patched models "
        f"({counts[MODELS]}, with {counts[BLOCKS]} blocks), {len(comparison.fused)} through fused functions "
        f"({counts[FUSED]} calls); {counts[REFUSED]} models on meta refused"
    )
    console.print(
        f"{faults} different results, and {len(comparison.differences) - faults} of tests that are unstable without "
        "patchkit",
        style="red" if faults else "green",
    )
    if not comparison.fused:
        console.print("No test passed through a fused function, so nothing is proven.", style="red")


def _as_json(comparison: Comparison) -> dict[str, object]:
    return {
        "results": comparison.results,
        "counts": comparison.counts,
        "patched_tests": comparison.patched_tests,
        "fused": comparison.fused,
        "differences": [asdict(one) for one in comparison.differences],
        "plain": {test: asdict(outcome) for test, outcome in comparison.plain.items()},
        "patched": {test: asdict(outcome) for test, outcome in comparison.patched.items()},
    }


if __name__ == "__main__":
    typer.run(command)
