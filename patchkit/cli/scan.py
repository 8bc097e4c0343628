"""``patchkit scan``: what becomes of every model type of a transformers release."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchkit.cli.apply_options import ApplyOptions, apply_options
from patchkit.cli.check import TimeLimit, progress_of
from patchkit.cli.console import error_console, output_console
from patchkit.cli.fitting import fitted
from patchkit.escaping import json_text, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from patchkit.check.numeric.model_types import State, TypeOutcome
    from patchkit.check.numeric.recorded import Recorded
    from patchkit.cli.console import SafeConsole

_STYLES: dict[State, str] = {
    "verified": "green",
    "different": "bold red",
    "upstream": "yellow",
    "nothing to patch": "dim",
    "no model": "dim",
    "not run": "yellow",
    "not built": "yellow",
}
_FILE_WIDTH = 180
_SECONDS = 120.0


def scan(
    model_type: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL_TYPE]...", help="Model types or globs. Default: all.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            metavar="HEAD",
            help="What the models end in: causal, image-text, seq2seq, encoder, speech-seq2seq, ctc, vision, "
            "multimodal, base, task, part; repeatable. Default: all.",
        ),
    ] = None,
    transformers: Annotated[
        str, typer.Option("--transformers", "-t", metavar="RELEASE", help="A release or a path, as check takes it.")
    ] = "installed",
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Run every type, also those whose outcome is on record or in the cache."),
    ] = False,
    every: Annotated[
        bool, typer.Option("--all-rows", help="Show the types that are verified too, one line each.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write",
            metavar="FILE",
            help="Write everything as Markdown, as coverage.md is, and the record beside it.",
        ),
    ] = None,
    option: ApplyOptions = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = os.cpu_count() or 1,
    time_limit: TimeLimit = _SECONDS,
) -> None:
    """Build a tiny model of each model type, put adapters on its linear layers, patch it, and compare it with itself.

    Outputs, loss and every gradient are compared in float32, and in float64 where rounding alone exceeds the tolerance.

    What was found is remembered until a source, a package or this machine's settings change. In a checkout of patchkit,
    coverage.jsonl has what was found with the same code. Another release runs in an environment of its own, as for
    check; a type whose sources are on record is not run. With --option every type is run, and nothing is remembered.

    Exit code 0: no model differs; 1: one does.
    """
    from patchkit.check.numeric.recorded import Recorded, record_of_checkout, to_text
    from patchkit.check.numeric.remembered import Remembered, setting_of
    from patchkit.check.numeric.scanning import DEFAULT_HEADS, scan_types
    from patchkit.check.run import environment_of
    from patchkit.options import checked
    from patchkit.upstream.releases import resolve

    options = apply_options(option)
    checked(options)
    if options and write:
        error_console().print("patchkit: error: what --write records is found without --option; leave one of them out")
        raise typer.Exit(2)
    anew = anew or bool(options)
    (release,) = resolve([transformers])
    environment = environment_of(release)
    heads = head or list(DEFAULT_HEADS)
    remembered = None if anew else Remembered(setting_of(environment))
    place = record_of_checkout()
    # What is written is what was found here: a record that is made of itself would never be wrong.
    recorded = None if anew or write or place is None else Recorded.load(place, environment)
    with progress_of("running tiny models") as advance:
        found = scan_types(
            environment,
            heads,
            model_type or (),
            jobs=jobs,
            seconds=time_limit,
            remembered=remembered,
            recorded=recorded,
            options=options,
            progress=advance,
        )
        outcomes = list(found)
    outcomes.sort(key=lambda one: (heads.index(one.head), one.model_type))
    if write:
        from patchkit.cache.storage import write_whole
        from patchkit.check.results.coverage import coverage_text

        versions = {name: version for name, version in environment.versions.items() if name != "python"}
        write_whole(write, coverage_text(outcomes, versions))
        write_whole(write.with_suffix(".jsonl"), to_text(outcomes, environment))
    console = output_console()
    if as_json:
        versions = dict(environment.versions)
        console.print(json_text({"versions": versions, "types": [one.to_json() for one in outcomes]}))
    else:
        print_outcomes(console, outcomes, every=every or bool(model_type))
        if recorded is not None and not recorded.same_release:
            print_news(console, outcomes, recorded, whole=not model_type)
    if any(one.state == "different" for one in outcomes):
        raise typer.Exit(1)


def print_outcomes(console: SafeConsole, outcomes: Sequence[TypeOutcome], *, every: bool) -> None:
    """A line for each head, then one for each type that is not verified (or for every type)."""
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    shown = [one for one in outcomes if every or one.state != "verified" or one.left]
    if shown:
        console.print(fitted(_types(shown), console))
    console.print(fitted(_heads(outcomes), console))


def print_news(console: SafeConsole, outcomes: Sequence[TypeOutcome], recorded: Recorded, *, whole: bool) -> None:
    """What a release has that the one on record has not, in one line each."""
    release = recorded.made_with.versions.get("transformers", "?")
    run = dict.fromkeys(one.model_type for one in outcomes if not one.seen_in)
    here = {one.model_type for one in outcomes}
    heads = {one.head for one in outcomes}
    gone = sorted({name for name, head in recorded.lines if head in heads} - here) if whole else []
    for what, names in (
        (f"new since {release}", [name for name in run if recorded.is_new(name)]),
        (f"of other sources than in {release}", [name for name in run if not recorded.is_new(name)]),
        (f"in {release} and gone", gone),
    ):
        console.print(one_line(f"{what}: {', '.join(names) or 'none'}"))
    same = sum(bool(one.seen_in) for one in outcomes)
    console.print(one_line(f"of the same sources as in {release}, as they were found with it: {same}"))


def _types(outcomes: Sequence[TypeOutcome]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model type", "head", "state", "in blocks", "alone", "upstream", "worst", "blocks, or why not"):
        right = heading in {"in blocks", "alone", "upstream", "worst"}
        table.add_column(heading, overflow="fold", justify="right" if right else "left")
    for one in outcomes:
        counts = [str(count) if one.layers else "" for count in (one.whole, one.alone, one.left)]
        worst = f"{one.error:.1e} ({one.judged_in})" if one.judged_in else ""
        why = one_line(one.reason or ", ".join(one.blocks))
        table.add_row(one_line(one.model_type), one.head, f"{one.state}", *counts, worst, why, style=_STYLES[one.state])
    return table


def _heads(outcomes: Sequence[TypeOutcome]) -> Table:
    from rich.table import Table

    from patchkit.check.numeric.model_types import STATES

    found = Counter(one.state for one in outcomes)
    states = [state for state in STATES if found[state]]
    table = Table(box=None, pad_edge=False)
    for heading in ("head", "types", *states, "adapted layers", "in blocks", "alone", "upstream"):
        table.add_column(heading, justify="left" if heading == "head" else "right")
    for head in [*dict.fromkeys(one.head for one in outcomes), "all"]:
        own = [one for one in outcomes if head in (one.head, "all")]
        layers = sum(one.layers for one in own)
        shares = [sum(counted) for counted in zip(*((one.whole, one.alone, one.left) for one in own), strict=True)]
        told = [f"{count} ({100 * count / layers:.0f} %)" if layers else "" for count in shares]
        by_state = Counter(one.state for one in own)
        table.add_row(head, str(len(own)), *(str(by_state[state]) for state in states), str(layers), *told)
    return table
