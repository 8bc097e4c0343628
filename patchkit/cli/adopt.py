"""``patchkit adopt``: take what another run of ``patchkit watch`` found, which is checked and never executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchkit.cli.console import output_console
from patchkit.cli.recorded_matrix import write_matrix


def adopt(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The other run's records.jsonl and ledger.jsonl (with --peft: peft_records.jsonl and "
            "peft_proofs.jsonl), and its output as watch.log."
        ),
    ],
    peft: Annotated[bool, typer.Option("--peft", help="It is of releases of PEFT: `patchkit watch --peft`.")] = False,
    release: Annotated[
        list[str] | None,
        typer.Option("--release", metavar="RELEASE", help="Take this release and no other; repeatable. Default: any."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The matrix to write.")] = Path("compat_matrix.md"),
    body: Annotated[
        Path | None, typer.Option("--body", metavar="FILE", help="Write what to say in a pull request.")
    ] = None,
) -> None:
    """Add the releases that another run recorded, with their proofs, to the records, the proofs and the matrix.

    Prints the newest of these releases, or nothing if none is new. Exit code 2: a file holds something that patchkit
    does not write; then nothing is taken.
    """
    from packaging.version import InvalidVersion, Version

    from patchkit.cache.storage import write_whole
    from patchkit.escaping import fenced, visible

    try:
        asked = [str(Version(one)) for one in release or ()]
    except InvalidVersion as error:
        raise typer.BadParameter(f"{error}; say one such as 5.23.0", param_hint="--release") from error
    newest, proofs, log = (_adopt_peft if peft else _adopt_transformers)(folder, asked)
    if not newest:
        return
    write_matrix(output)
    if body:
        said = fenced(visible(log)[-20_000:])
        write_whole(body, f"{proofs} new proofs. The end of what the run printed:\n\n{said}")
    output_console().print(newest)


def _adopt_transformers(folder: Path, asked: list[str]) -> tuple[str, int, str]:
    """Take releases of transformers; returns the newest, how many proofs are new, and what the run printed."""
    import datetime

    from patchkit.check.results.proposal import read_proposal
    from patchkit.check.static.records import SHIPPED_RECORDS, Records
    from patchkit.trust.ledger import SHIPPED_LEDGER, add_proofs, read_proofs

    records = Records.load(SHIPPED_RECORDS)
    found = read_proposal(folder, records, read_proofs(SHIPPED_LEDGER), asked)
    if found.findings:
        add_proofs(SHIPPED_LEDGER, found.proofs)
        records.with_findings(found.findings, datetime.date.today().isoformat()).save(SHIPPED_RECORDS)
    return found.newest, len(found.proofs), found.log


def _adopt_peft(folder: Path, asked: list[str]) -> tuple[str, int, str]:
    """The same of PEFT."""
    import datetime

    from patchkit.adapters import peft_known
    from patchkit.check.results.peft_proposal import read_peft_proposal
    from patchkit.check.static import peft_layers

    place, proofs = peft_layers.SHIPPED_PEFT_RECORDS, peft_known.SHIPPED_PROOFS
    records = peft_layers.ReaderRecords.load(place)
    found = read_peft_proposal(folder, records, peft_known.shipped_proofs(proofs), asked)
    if found.records:
        peft_known.add_reader_proofs(found.proofs, proofs)
        sources = ((one.release, one.reader, one.sources) for one in found.records)
        records.with_sources(sources, datetime.date.today().isoformat()).save(place)
    return found.newest, len(found.proofs), found.log
