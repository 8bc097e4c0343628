"""``patchkit check``: the proof for chosen architectures, on the installed transformers or on any other release."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchkit.check import TIME_LIMIT
from patchkit.cli.console import SafeConsole, error_console, output_console
from patchkit.escaping import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchkit.check.results.report import CheckReport
    from patchkit.check.run import Numbers
    from patchkit.check.static.records import Records

LINE_SECONDS = 10.0
"""How often a long command says how far it is, where it cannot draw a bar."""

Wheels = Annotated[
    Path | None, typer.Option("--wheels", metavar="DIR", help="Take wheels from this folder, not from pip's index.")
]

RequireHashes = Annotated[
    bool, typer.Option("--require-hashes", help="Refuse a wheel for which the index publishes no hash: exit code 2.")
]

TimeLimit = Annotated[
    float,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        min=1.0,
        help="Stop a process that runs one small model, or pip that installs a release, after so many seconds.",
    ),
]


def check(
    arch: Annotated[
        list[str] | None, typer.Option("--arch", "-a", metavar="NAME", help="An architecture or a glob; repeatable.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every registered architecture.")] = False,
    transformers: Annotated[
        list[str] | None,
        typer.Option(
            "--transformers",
            "-t",
            metavar="RELEASE",
            help="A release, a range such as '>=5.20', 'latest', or the path of a wheel or checkout; repeatable. "
            "Default: the installed one.",
        ),
    ] = None,
    peft: Annotated[
        list[str] | None,
        typer.Option(
            "--peft",
            metavar="RELEASE",
            help="A release of PEFT, as with --transformers: its layers are checked, and models run with it.",
        ),
    ] = None,
    torch: Annotated[
        list[str] | None,
        typer.Option(
            "--torch", metavar="VERSION", help="Run models with this torch, from pip's index. Repeatable; not --static."
        ),
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="Read and rewrite only; run no model.")] = False,
    unproven: Annotated[
        bool, typer.Option("--unproven", help="Run no model whose source the ledger has a proof of.")
    ] = False,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="In a checkout of patchkit, enter proofs into its own ledger, to be committed. "
            "Default: the ledger in your cache.",
        ),
    ] = False,
    time_limit: TimeLimit = TIME_LIMIT,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Run models there: cuda, cuda:1, xpu. Its proofs are shown, not recorded.",
        ),
    ] = "cpu",
    wheels: Wheels = None,
    require_hashes: RequireHashes = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show upstream's change and the rewrite of every class.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Print annotations of GitHub Actions.")] = False,
) -> None:
    """Prove that the blocks of an architecture are rewritten, and that the numbers are upstream's.

    The static stage rewrites the source of each release, and compares the outcome with that of the last release on
    record. The release need not be installed. The numeric stage runs small random models, patched and unpatched, and
    compares their numbers. A release that is not installed gets an environment of its own: separate packages, and few
    of your environment variables. This is no sandbox, so check only what you would install. With --peft the layers of
    PEFT are compared and proven too.

    Exit code 0: all verified; 1: drift or failure; 2: wrong usage or environment.
    """
    if arch and every:
        raise typer.BadParameter("--all is every architecture; leave out one of them", param_hint="--arch")
    if not (arch or every or peft):
        raise typer.BadParameter("say which: --arch NAME, or --all", param_hint="--arch")
    if static and torch:
        raise typer.BadParameter("no source depends on it; leave out --static to run models", param_hint="--torch")
    if device != "cpu" and (static or record):
        said = "--static runs no model" if static else "--record enters proofs that were made on the CPU"
        raise typer.BadParameter(f"{said}; leave out one of them", param_hint="--device")
    if device != "cpu":
        from patchkit.testing.devices import usable_device

        usable_device(device)  # before anything is fetched
    from patchkit.cache.storage import write_whole
    from patchkit.check.results.formats import as_github
    from patchkit.check.results.formats import as_json as to_json
    from patchkit.check.run import Numbers
    from patchkit.check.static.records import Records
    from patchkit.cli.check_table import print_report

    records = Records.load()
    chosen, wanted = ["*"] if every else arch or [], transformers or ["installed"]
    numbers = None if static else Numbers(unproven, record, time_limit, device)
    report = run_shown(chosen, wanted, records, wheels, numbers, require_hashes, peft or (), torch or ())
    if junit:
        from patchkit.check.results.formats import as_junit

        write_whole(junit, as_junit(report))
    console = output_console(github=github)
    if as_json:
        console.print(to_json(report))
    else:
        print_report(console, report)
        if diff:
            print_changes(console, report, records, wheels)
    if github:
        for line in as_github(report):
            console.command(line)
    if report.failed:
        raise typer.Exit(1)


def run_shown(
    arch: list[str],
    transformers: list[str],
    records: Records,
    wheels: Path | None,
    numbers: Numbers | None,
    require_hashes: bool = False,
    peft: Sequence[str] = (),
    torch: Sequence[str] = (),
) -> CheckReport:
    """:func:`patchkit.check.run.run_check`; standard error shows how far it is, and where the proofs are.

    Raises:
        PatchkitError: an architecture or release is unknown, or cannot be had.
    """
    from patchkit.check.run import ledger_to_write, run_check

    report = run_check(
        arch,
        transformers,
        records,
        numbers,
        wheels=wheels,
        require_hashes=require_hashes,
        progress=progress_of,
        peft=peft,
        torch=torch,
    )
    if numbers and (proofs := {proof.key for entry in report.numeric for proof in entry.outcome.proofs}):
        where = f"are in {ledger_to_write(numbers.record)}" if numbers.device == "cpu" else "are shown, not recorded"
        error_console().print(f"proofs of {len(proofs)} classes {where}")
    return report


@contextmanager
def progress_of(text: str) -> Iterator[Callable[..., None]]:
    """A bar on standard error, which goes away when it is done; where that is no terminal, a line now and then.

    Yields:
        A function of how many steps are done and how many there are, and optionally ``text=`` to show.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = error_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)
        said = time.monotonic()
        over = threading.Event()

        def say(so_far: str = "") -> None:
            nonlocal said
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                console.print(f"{progress.tasks[task].description}{so_far}")

        def advance(done: int, total: int, text: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=text)
            if not console.is_terminal:
                say(f": {done} of {total}")

        def wait() -> None:
            while not over.wait(LINE_SECONDS):
                done, total = progress.tasks[task].completed, progress.tasks[task].total
                say(", still running" if total is None else f": {done:.0f} of {total:.0f}, still running")

        waiting = threading.Thread(target=wait, daemon=True)
        if not console.is_terminal:
            waiting.start()
        try:
            yield advance
        finally:
            over.set()


def print_changes(console: SafeConsole, report: CheckReport, records: Records, wheels: Path | None) -> None:
    """For each class: what upstream changed since the release it is compared with, and the rewrite."""
    from patchkit.check.static.changes import rewrite_change, upstream_change
    from patchkit.cli.diff import style_of
    from patchkit.upstream.kept_releases import fetch

    shown = set()
    for entry in report.entries:
        finding = entry.finding
        if (entry.release, finding.owner, finding.class_name) in shown or not finding.line:
            continue
        shown.add((entry.release, finding.owner, finding.class_name))
        lines = [f"# {finding.architecture}: {finding.class_name}, {entry.release.package} {finding.release}"]
        if entry.since:
            change = list(upstream_change(finding, entry.release, fetch(entry.since, wheels)))
            lines += [f"# upstream since {entry.since}:", *change] if change else [f"# unchanged since {entry.since}"]
        lines += ["# the rewrite:", *rewrite_change(finding, entry.release)]
        for line in lines:
            console.print(one_line(line), style=style_of(line))
