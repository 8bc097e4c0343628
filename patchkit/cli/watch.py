"""``patchkit watch``: what a scheduled job runs; checks the releases that the index has and the matrix lacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchkit.check import TIME_LIMIT
from patchkit.cli.check import RequireHashes, TimeLimit, Wheels, run_shown
from patchkit.cli.console import output_console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packaging.version import Version

    from patchkit.check.static.peft_layers import ReaderRecords
    from patchkit.check.static.records import Records


def watch(
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="RELEASE", help="Look after this release. Default: the newest known."),
    ] = None,
    peft: Annotated[bool, typer.Option("--peft", help="Look for releases of PEFT, and check their layers.")] = False,
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
    """Check the releases of transformers, or of PEFT, that are newer than the matrix, and say what to do.

    Exit code 0: nothing new, or all verified; 1: drift or failure; 2: wrong usage or environment.
    """
    from patchkit.check.results.formats import as_github
    from patchkit.check.run import Numbers
    from patchkit.check.static.peft_layers import ReaderRecords
    from patchkit.check.static.records import Records
    from patchkit.cli.check_table import print_report
    from patchkit.upstream.wheels import PACKAGE, PEFT

    console = output_console(github=github)
    records, layers = Records.load(), ReaderRecords.load()
    recorded = layers.releases() if peft else records.releases()
    after, names = _new_releases(recorded, since, wheels, PEFT if peft else PACKAGE)
    if not names:
        console.print(f"nothing new: no release{' of PEFT' if peft else ''} after {after} that the matrix lacks")
        return
    console.print(f"new{' of PEFT' if peft else ''}: {', '.join(names)}")
    numbers = None if static else Numbers(True, write, time_limit)
    if peft:
        report = run_shown([], ["installed"], records, wheels, numbers, require_hashes, names)
    else:
        report = run_shown(["*"], names, records, wheels, numbers, require_hashes)
    print_report(console, report)
    for line in as_github(report) if github else ():
        console.command(line)
    if write:
        written = _write(output, records, layers, names, wheels, require_hashes, peft=peft)
        console.print(f"wrote {output}; commit it with {written}")
    advice = _peft_advice if peft else _advice
    console.print(advice(report.failed, names, static, write))
    if report.failed:
        raise typer.Exit(1)


def _new_releases(
    recorded: Sequence[Version], since: str | None, wheels: Path | None, package: str
) -> tuple[Version, list[str]]:
    """After which release is looked, and which of those that the index has are not recorded."""
    from packaging.version import InvalidVersion, Version

    from patchkit.upstream.index import list_versions

    try:
        after = Version(since) if since else recorded[-1]
    except InvalidVersion as error:
        raise typer.BadParameter(f"{since!r} is not a release", param_hint="--since") from error
    except IndexError as error:
        raise typer.BadParameter("nothing is recorded: say after which release", param_hint="--since") from error
    there = list_versions(wheels, package)
    return after, [str(version) for version in there if version > after and version not in recorded]


def _write(
    output: Path,
    records: Records,
    layers: ReaderRecords,
    names: list[str],
    wheels: Path | None,
    require_hashes: bool,
    *,
    peft: bool,
) -> str:
    """Add releases to the records and the matrix; returns the names of the other files that changed."""
    from patchkit.adapters.peft_known import SHIPPED_PROOFS, shipped_proofs
    from patchkit.cache.storage import write_whole
    from patchkit.check.results.matrix import make_matrix, to_markdown
    from patchkit.check.results.models import Models
    from patchkit.check.results.peft_matrix import PeftMatrix
    from patchkit.check.static.peft_layers import SHIPPED_PEFT_RECORDS, ReaderRecords
    from patchkit.check.static.records import SHIPPED_RECORDS
    from patchkit.cli.matrix import record, record_peft
    from patchkit.trust.ledger import SHIPPED_LEDGER, read_proofs

    layers_place = SHIPPED_RECORDS.with_name(SHIPPED_PEFT_RECORDS.name)
    if peft:
        layers = record_peft(layers, names, wheels, require_hashes)
    else:
        records, _ = record(records, names, wheels, require_hashes)
        layers = ReaderRecords.load(layers_place)
    # What is known of every other model stays in the matrix.
    models = Models.load(output.with_name("compat_models.jsonl"))
    table = make_matrix(records, read_proofs(SHIPPED_LEDGER))
    text = to_markdown(table, models, PeftMatrix(layers, shipped_proofs()))
    if peft:
        layers.save(layers_place)
    else:
        records.save(SHIPPED_RECORDS)
    write_whole(output, text)
    changed = (layers_place, SHIPPED_PROOFS) if peft else (SHIPPED_RECORDS, SHIPPED_LEDGER)
    return " and ".join(place.name for place in changed)


def _peft_advice(failed: bool, names: list[str], static: bool, write: bool) -> str:
    """What a person should do now about releases of PEFT."""
    options = " ".join(f"--peft {name}" for name in names)
    if static and failed:
        return f"to do: `patchkit check {options}` runs what changed; what is equal is proven by it."
    if failed:
        return (
            "to do: read what changed above, and let the reader in patchkit/adapters compute it, or give it back to "
            f"PEFT; then `patchkit check {options}` proves it. Until then these layers run PEFT's code, with a reason."
        )
    if static:
        return f"to do: `patchkit check {options}` proves the numbers."
    return "to do: commit the new column." if write else "to do: `patchkit watch --peft --write` adds the new column."


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
