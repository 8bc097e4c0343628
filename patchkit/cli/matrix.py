"""``patchkit matrix``: the compatibility matrix of architectures and releases, written as Markdown and HTML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchkit.cli.check import RequireHashes, Wheels, progress_of
from patchkit.cli.console import error_console, output_console

if TYPE_CHECKING:
    from patchkit.arch.spec import Architecture
    from patchkit.check.static.models import ModelInBrief
    from patchkit.check.static.peft_layers import ReaderRecords
    from patchkit.check.static.records import Records
    from patchkit.upstream.release import Release


def matrix(
    output: Annotated[Path, typer.Option("--output", "-o", help="The Markdown file to write.")] = Path(
        "compat_matrix.md"
    ),
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also a self-contained page.")] = None,
    records: Annotated[
        Path | None, typer.Option("--records", metavar="FILE", help="Where results are kept. Default: in the package.")
    ] = None,
    transformers: Annotated[
        list[str] | None,
        typer.Option(
            "--transformers", "-t", metavar="RELEASE", help="Add or renew only this release or range; repeatable."
        ),
    ] = None,
    peft: Annotated[
        list[str] | None,
        typer.Option("--peft", metavar="RELEASE", help="Add or renew only this release or range of PEFT; repeatable."),
    ] = None,
    models: Annotated[
        bool,
        typer.Option(
            "--models", help="Read every model of these releases too, which takes minutes, into compat_models.jsonl."
        ),
    ] = False,
    every: Annotated[bool, typer.Option("--every", help="Every release since 4.48.0; needs --records.")] = False,
    wheels: Wheels = None,
    require_hashes: RequireHashes = False,
) -> None:
    """Write the matrix of every registered architecture and every release of the list.

    The static stage runs: each release is read and rewritten as text. The numeric stage is `patchkit check`, whose
    proofs the matrix shows. Models without an architecture are kept beside the Markdown file, in compat_models.jsonl.
    Nothing is written before everything is done.
    """
    from patchkit.adapters.peft_known import shipped_proofs
    from patchkit.cache.storage import write_whole
    from patchkit.check.results.matrix import RELEASES, make_matrix, to_markdown
    from patchkit.check.results.models import Models
    from patchkit.check.results.peft_matrix import PEFT_RELEASES, PeftMatrix
    from patchkit.check.results.torch_records import TorchRecords
    from patchkit.check.static.peft_layers import SHIPPED_PEFT_RECORDS, ReaderRecords
    from patchkit.check.static.records import SHIPPED_RECORDS, Records
    from patchkit.trust.ledger import SHIPPED_LEDGER, read_proofs, user_ledger
    from patchkit.upstream.releases import OLDEST, resolve

    if every and records is None:
        raise typer.BadParameter("--every is not what the package ships: say --records FILE", param_hint="--every")
    place = records or SHIPPED_RECORDS
    known = Records.load(place)
    wanted, of_peft = list(transformers or ()), list(peft or ())
    if not wanted and not of_peft:
        of_peft = [*PEFT_RELEASES]
        # A release that was added to the list is renewed with it: architectures and rules may be new.
        wanted = [f">={OLDEST}"] if every else [*RELEASES, *map(str, known.releases())]
    known, releases = record(known, wanted, wheels, require_hashes)
    layers_place = place.with_name(SHIPPED_PEFT_RECORDS.name)
    layers = record_peft(ReaderRecords.load(layers_place), of_peft, wheels, require_hashes)
    shown, torch = PeftMatrix(layers, shipped_proofs()), TorchRecords.load()
    # What a plugin says of a class is in the key of its proofs, and these are the user's own.
    plugins = {key: proof for key, proof in read_proofs(user_ledger()).items() if key.description}
    table = make_matrix(known, {**plugins, **read_proofs(SHIPPED_LEDGER)})
    kept = output.with_name("compat_models.jsonl")
    rows, briefs = Models.load(kept), read_models(releases) if models else {}
    for release, found in briefs.items():
        rows = rows.with_release(release, found)
    if html:
        from patchkit.check.results.matrix_html import to_html

        have = {release.version for release in releases}
        with progress_of("fetching releases") as fetched:
            missing = [version for version in table.releases if version not in have]
            others = resolve(missing, wheels=wheels, progress=fetched, require_hashes=require_hashes)
        write_whole(html, to_html(table, [*releases, *others], rows, briefs, shown, torch))
    known.save(place)
    if layers.entries:
        layers.save(layers_place)
    if models:
        write_whole(kept, rows.to_text())
    write_whole(output, to_markdown(table, rows, shown, torch))
    for architecture in _elsewhere():
        error_console().print(
            f"{architecture.name} is no row: {architecture.module} is not part of transformers; "
            f"`patchkit check --arch {architecture.name}` checks what is installed of it"
        )
    written = [
        str(path) for path in (output, html, place, layers_place if of_peft else None, kept if models else None) if path
    ]
    counts = f"{len(table.rows)} architectures × {len(table.releases)} releases"
    if rows.cells:
        counts += f", {len(rows.cells)} models × {len(rows.releases)}"
    output_console().print(f"{counts}: {', '.join(written)}")


def read_models(releases: list[Release]) -> dict[str, list[ModelInBrief]]:
    """Every model of these releases in brief."""
    from patchkit.check.static.models import sweep_models

    with progress_of("reading models") as read:
        return sweep_models(releases, progress=read)


def record(
    known: Records, wanted: list[str], wheels: Path | None, require_hashes: bool = False
) -> tuple[Records, list[Release]]:
    """Run the static stage of every architecture of transformers on releases, and add what is found to the records."""
    import datetime

    from patchkit.arch.registry import architectures
    from patchkit.check.static.sweep import sweep
    from patchkit.upstream.releases import resolve

    elsewhere = _elsewhere()
    upstream = [one for one in architectures().values() if one not in elsewhere]
    with progress_of("fetching releases") as fetched:
        releases = resolve(wanted, wheels=wheels, progress=fetched, from_wheels=True, require_hashes=require_hashes)
    with progress_of("rewriting") as rewritten:
        findings = sweep(releases, upstream, progress=rewritten)
    return known.with_findings(findings, datetime.date.today().isoformat()), releases


def record_peft(
    known: ReaderRecords, wanted: list[str], wheels: Path | None, require_hashes: bool = False
) -> ReaderRecords:
    """Read the layers of releases of PEFT, and add what is found to the records."""
    import datetime

    from patchkit.check.static.peft_layers import findings_in
    from patchkit.upstream.releases import resolve
    from patchkit.upstream.wheels import PEFT

    if not wanted:
        return known
    options: dict[str, Any] = {"wheels": wheels, "require_hashes": require_hashes, "from_wheels": True, "package": PEFT}
    with progress_of("fetching releases of PEFT") as fetched:
        releases = resolve(wanted, progress=fetched, **options)
    findings = [finding for release in releases for finding in findings_in(release)]
    return known.with_findings(findings, datetime.date.today().isoformat())


def _elsewhere() -> list[Architecture]:
    """The architectures of plugins whose classes are not those of transformers."""
    from patchkit.arch.registry import architectures
    from patchkit.upstream.wheels import PACKAGE

    return [one for one in architectures().values() if not one.module.startswith(f"{PACKAGE}.")]
