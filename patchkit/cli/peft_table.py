"""What ``patchkit check --peft`` found, for people: a table for each release of PEFT, then what changed in it."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from patchkit.check.results.peft import PeftReport, ReaderEntry, ReaderNumbers, reader_explanation, reader_summary
from patchkit.cli.console import SafeConsole
from patchkit.cli.fitting import fitted, plain_table
from patchkit.escaping import one_line

_STYLES = {"known": "green", "changed": "bold red", "absent": "dim", "unreadable": "bold red"}
_STATUS_STYLES = {"passed": "green", "failed": "bold red", "inapplicable": "yellow"}


def print_peft(console: SafeConsole, report: PeftReport) -> None:
    """Print tables and explanations."""
    for release in report.releases:
        entries = [entry for entry in report.entries if entry.release == release]
        numeric = [one for one in report.numeric if one.release == release]
        title = f"peft {release.version} ({release.origin}): layers"
        console.print(fitted(_table(title, entries, numeric), console))
        if release.hash_note:
            console.print(one_line(release.hash_note), style="dim")
    for entry in report.entries:
        if entry.verdict in {"changed", "unreadable"}:
            where = one_line(f"{entry.finding.reader}, peft {entry.release.version}")
            console.print(
                f"{where}: {reader_summary(entry)}", style="magenta" if entry.proof else _STYLES[entry.verdict]
            )
            for line in reader_explanation(entry):
                console.print(f"  {line}", style={"+": "green", "-": "red"}.get(line.strip()[:1], ""))
    for one in report.numeric:
        if one.failed:
            console.print(one_line(f"{one.outcome.reader}, peft {one.release.version}: {one.outcome.reason}"))


def _table(title: str, entries: list[ReaderEntry], numeric: list[ReaderNumbers]) -> Table:
    table = plain_table(title)
    for heading in ("reader", "functions", "verdict", "compared with", "proof", "ran with", "numbers"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        own = [one for one in numeric if one.outcome.reader == entry.finding.reader]
        ran = "; ".join(f"transformers {one.transformers}, torch {one.outcome.versions['torch']}" for one in own)
        status = Text(", ".join(one.outcome.status for one in own))
        if own:
            status.stylize(_STATUS_STYLES[own[-1].outcome.status])
        verdict = Text(
            entry.verdict, style="magenta" if entry.verdict == "changed" and entry.proof else _STYLES[entry.verdict]
        )
        proof = f"with peft {entry.proof.versions['peft']}" if entry.proof else ""
        count = str(len(entry.finding.pieces) or "")
        table.add_row(
            one_line(entry.finding.reader), count, verdict, entry.since, one_line(proof), one_line(ran), status
        )
    return table
