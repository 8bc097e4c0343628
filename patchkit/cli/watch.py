"""``patchkit watch``: what a scheduled job runs; checks the releases that the index has and the matrix lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchkit.check import TIME_LIMIT
from patchkit.cli.check import RequireHashes, TimeLimit, Wheels, run_shown
from patchkit.cli.console import output_console


def watch(
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="RELEASE", help="Look after this release. Default: the newest known."),
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="Read and rewrite only; run no model.")] = False,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Add the releases to records, ledger (of this checkout) and matrix.",
        ),
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The matrix to write with --write.")] = Path(
        "compat_matrix.md"
    ),
    github: Annotated[bool, typer.Option("--github", help="Print annotations of GitHub Actions.")] = False,
    time_limit: TimeLimit = TIME_LIMIT,
    wheels: Wheels = None,
    require_hashes: RequireHashes = False,
) -> None:
    """Check the transformers releases that are newer than the matrix, and say what to do.

    Exit code 0: nothing new, or all verified; 1: drift or failure; 2: wrong usage or environment.
    """
    from packaging.version import InvalidVersion, Version

    from patchkit.check.results.formats import as_github
    from patchkit.check.run import Numbers
    from patchkit.check.static.records import SHIPPED_RECORDS, Records
    from patchkit.cli.check_table import print_report
    from patchkit.upstream.index import list_versions

    console = output_console(github=github)
    records = Records.load()
    recorded = records.releases()
    try:
        after = Version(since) if since else recorded[-1]
    except InvalidVersion as error:
        raise typer.BadParameter(f"{since!r} is not a release", param_hint="--since") from error
    except IndexError as error:
        raise typer.BadParameter("nothing is recorded: say after which release", param_hint="--since") from error
    new = [version for version in list_versions(wheels) if version > after and version not in recorded]
    if not new:
        console.print(f"nothing new: no release after {after} that the matrix lacks")
        return
    names = [str(version) for version in new]
    console.print(f"new: {', '.join(names)}")
    numbers = None if static else Numbers(True, write, time_limit)
    report = run_shown(["*"], names, records, wheels, numbers, require_hashes)
    print_report(console, report)
    for line in as_github(report) if github else ():
        console.command(line)
    if write:
        from patchkit.cache.storage import write_whole
        from patchkit.check.results.matrix import make_matrix, to_markdown
        from patchkit.check.results.peft_matrix import peft_matrix_of
        from patchkit.check.static.peft_layers import SHIPPED_PEFT_RECORDS
        from patchkit.cli.matrix import record
        from patchkit.trust.ledger import SHIPPED_LEDGER, read_proofs

        records, _ = record(records, names, wheels, require_hashes)
        layers = peft_matrix_of(SHIPPED_RECORDS.with_name(SHIPPED_PEFT_RECORDS.name))
        text = to_markdown(make_matrix(records, read_proofs(SHIPPED_LEDGER)), peft=layers)
        records.save(SHIPPED_RECORDS)
        write_whole(output, text)
        console.print(f"wrote {output}; commit it with {SHIPPED_RECORDS.name} and {SHIPPED_LEDGER.name}")
    console.print(_advice(report.failed, names, static, write))
    if report.failed:
        raise typer.Exit(1)


def _advice(failed: bool, names: list[str], static: bool, write: bool) -> str:
    """What a person should do now."""
    options = " ".join(f"-t {name}" for name in names)
    if failed:
        return (
            "to do: make the edits above, or add a rule in patchkit/rewrite; then `patchkit check --all "
            f"{options} --diff` shows what changed. Until then these parts run upstream's code, with a warning."
        )
    if static:
        return f"to do: `patchkit check --all {options}` proves the numbers."
    return "to do: commit the new column." if write else "to do: `patchkit watch --write` adds the new column."
