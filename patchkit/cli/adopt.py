"""``patchkit adopt``: take what another run of ``patchkit watch`` found, which is checked and never executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchkit.cli.console import output_console


def adopt(
    folder: Annotated[
        Path, typer.Argument(help="The other run's records.jsonl and ledger.jsonl, and its output as watch.log.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The matrix to write.")] = Path("compat_matrix.md"),
    body: Annotated[
        Path | None, typer.Option("--body", metavar="FILE", help="Write what to say in a pull request.")
    ] = None,
) -> None:
    """Add the releases that another run recorded, with their proofs, to the records, the ledger and the matrix.

    Prints the newest of these releases, or nothing if none is new. Exit code 2: a file holds something that patchkit
    does not write; then nothing is taken.
    """
    import datetime

    from patchkit.cache.storage import write_whole
    from patchkit.check.results.matrix import make_matrix, to_markdown
    from patchkit.check.results.models import Models
    from patchkit.check.results.peft_matrix import peft_matrix_of
    from patchkit.check.results.proposal import read_proposal
    from patchkit.check.static.peft_layers import SHIPPED_PEFT_RECORDS
    from patchkit.check.static.records import SHIPPED_RECORDS, Records
    from patchkit.escaping import fenced, visible
    from patchkit.trust.ledger import SHIPPED_LEDGER, add_proofs, read_proofs

    records = Records.load(SHIPPED_RECORDS)
    found = read_proposal(folder, records, read_proofs(SHIPPED_LEDGER))
    if not found.findings:
        return
    records = records.with_findings(found.findings, datetime.date.today().isoformat())
    add_proofs(SHIPPED_LEDGER, found.proofs)
    records.save(SHIPPED_RECORDS)
    layers = peft_matrix_of(SHIPPED_RECORDS.with_name(SHIPPED_PEFT_RECORDS.name))
    models = Models.load(output.with_name("compat_models.jsonl"))
    write_whole(output, to_markdown(make_matrix(records, read_proofs(SHIPPED_LEDGER)), models, layers))
    if body:
        said = fenced(visible(found.log)[-20_000:])
        write_whole(body, f"{len(found.proofs)} new proofs. The end of what the run printed:\n\n{said}")
    output_console().print(found.newest)
