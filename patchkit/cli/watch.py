"""``patchkit watch``: what a scheduled job runs; checks the releases that the index has and the matrix lacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchkit.check import TIME_LIMIT
from patchkit.cli.check import RequireHashes, TimeLimit, Wheels, run_shown
from patchkit.cli.console import SafeConsole, output_console
from patchkit.cli.recorded_matrix import write_matrix

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
    torch: Annotated[
        bool,
        typer.Option("--torch", help="Look for versions of torch, and run the models with each, installed by pip."),
    ] = False,
    names_only: Annotated[
        bool, typer.Option("--list", help="Print the new releases, a line each, and check nothing.")
    ] = False,
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
    """Check the releases of transformers, of PEFT or of torch that are newer than the matrix, and say what to do.

    Exit code 0: nothing new, or all verified; 1: drift or failure; 2: wrong usage or environment.
    """
    from patchkit.check.results.torch_records import TorchRecords
    from patchkit.check.static.peft_layers import ReaderRecords
    from patchkit.check.static.records import Records
    from patchkit.upstream.wheels import PACKAGE, PEFT

    if torch and (peft or static):
        said = "no source depends on it; leave out --static" if static else "one library at a time; leave out --peft"
        raise typer.BadParameter(said, param_hint="--torch")
    console = output_console(github=github)
    records, layers = Records.load(), ReaderRecords.load()
    if torch:
        after, names = _new_releases(TorchRecords.load().releases(), since, wheels, "torch")
    else:
        recorded = layers.releases() if peft else records.releases()
        after, names = _new_releases(recorded, since, wheels, PEFT if peft else PACKAGE)
    of = " of torch" if torch else " of PEFT" if peft else ""
    if names_only:
        for name in names:
            console.print(name)
        return
    if not names:
        console.print(f"nothing new: no release{of} after {after} that the matrix lacks")
        return
    console.print(f"new{of}: {', '.join(names)}")
    if torch:
        _watch_torch(console, names, records, output if write else None, time_limit, github=github)
        return
    from patchkit.check.results.formats import as_github
    from patchkit.check.run import Numbers
    from patchkit.cli.check_table import print_report

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
    # An index may have several builds of one version: 2.13.0 and 2.13.0+cpu.
    there = sorted({Version(version.public) for version in list_versions(wheels, package)})
    return after, [str(version) for version in there if version > after and version not in recorded]


def _watch_torch(
    console: SafeConsole, names: list[str], records: Records, output: Path | None, time_limit: float, *, github: bool
) -> None:
    """Run every architecture with each version of torch, and record what came of it as soon as it is there.

    Args:
        console: to print to.
        names: the versions.
        records: of transformers.
        output: the matrix to write; None if nothing is to be recorded.
        time_limit: in seconds.
        github: whether annotations are printed.
    """
    import datetime

    from patchkit.check.results.formats import as_github
    from patchkit.check.results.torch_records import SHIPPED_TORCH_RECORDS, TorchRecord, TorchRecords
    from patchkit.check.run import Numbers
    from patchkit.cli.check_table import print_report

    failed = []
    for name in names:
        # Every proof is run again: the source is what was proven, and torch is another.
        report = run_shown(["*"], ["installed"], records, None, Numbers(seconds=time_limit), False, (), [name])
        print_report(console, report)
        for line in as_github(report) if github else ():
            console.command(line)
        outcomes = [entry.outcome for entry in report.numeric]
        found = TorchRecord.of(name, outcomes, datetime.date.today().isoformat())
        console.print(
            f"torch {name}: {found.passed} checks passed, {found.failed} failed, {found.inapplicable} not applicable; "
            f"numbers equal in {found.architectures - len(found.unproven)} of {found.architectures} architectures"
        )
        if found.unproven or found.failed:
            failed.append(name)
        if output is not None:
            TorchRecords.load().with_record(found).save(SHIPPED_TORCH_RECORDS)
            write_matrix(output)
    if output is not None:
        console.print(f"wrote {output}; commit it with {SHIPPED_TORCH_RECORDS.name}")
    options = " ".join(f"--torch {name}" for name in failed)
    if failed:
        console.print(
            f"to do: `patchkit check --all {options}` shows what failed. Until it is mended, use another torch."
        )
        raise typer.Exit(1)
    console.print(
        "to do: commit the new lines." if output else "to do: `patchkit watch --torch --write` records what was proven."
    )


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
    from patchkit.check.results.torch_records import TorchRecords
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
    text = to_markdown(table, models, PeftMatrix(layers, shipped_proofs()), TorchRecords.load())
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
