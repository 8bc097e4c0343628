"""A check report for people: a table for each release, then what needs a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from rich.table import Table
from rich.text import Text

from patchkit.check.architecture.hints import differences
from patchkit.check.results.formats import explanation, numeric_faults
from patchkit.check.results.report import CheckReport, Entry, NumericEntry
from patchkit.check.static.verdicts import Verdict
from patchkit.cli.console import SafeConsole
from patchkit.cli.fitting import fitted, plain_table
from patchkit.cli.peft_table import print_peft
from patchkit.escaping import indented, one_line
from patchkit.upstream.release import Release

STYLES: dict[Verdict, str] = {
    "rewritten": "green",
    "partial": "yellow",
    "absent": "dim",
    "rewritten differently": "magenta",
    "drifted": "bold red",
    "unmatched": "red",
}


_FILE_WIDTH = 160
"""Columns of a table in a file or a pipe, where nothing says how wide it may be."""

_STATUS_STYLES = {"passed": "green", "failed": "bold red", "inapplicable": "yellow"}


def print_report(console: SafeConsole, report: CheckReport) -> None:
    """Print tables, explanations and one line that sums up."""
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for release in report.releases:
        entries = [entry for entry in report.entries if entry.release == release]
        numeric = [entry for entry in report.numeric if entry.release == release]
        console.print(fitted(_table(release, entries), console))
        if release.hash_note:
            console.print(one_line(release.hash_note), style="dim")
        for environment in dict.fromkeys(entry.environment for entry in numeric):
            own = [entry for entry in numeric if entry.environment == environment]
            console.print(fitted(_numeric_table(environment, own), console))
    if report.peft is not None:
        print_peft(console, report.peft)
    for entry in report.entries:
        for line, style in _details(entry):
            console.print(line, style=style)
    for shown in report.numeric:
        for line in numeric_faults(shown):
            where = f"{shown.outcome.architecture}, {shown.environment}"
            console.print(f"{one_line(where)}: {line}")
    console.print(_sum(report))


def _table(release: Release, entries: list[Entry]) -> Table:
    table = plain_table(f"{release.package} {release.version} ({release.origin}): source")
    for heading in ("architecture", "class", "part", "verdict", "rule", "compared with", "proof"):
        table.add_column(heading, overflow="fold")
    before = ("", "")
    for entry in entries:
        finding = entry.finding
        place = (finding.architecture, finding.class_name)
        first = finding.architecture if place[0] != before[0] else ""
        second = finding.class_name if place != before else ""
        before = place
        rules = " + ".join(dict.fromkeys(entry.outcome.rules))
        verdict = Text(entry.verdict, style=STYLES[entry.verdict])
        proof = entry.proof.stage if entry.proof else "static" if entry.outcome.rules else ""
        table.add_row(first, second, entry.part, verdict, rules, entry.since, proof)
    return table


def _numeric_table(environment: str, numeric: Iterable[NumericEntry]) -> Table:
    table = plain_table(f"{environment}: numbers")
    for heading in ("architecture", "class", "model", "levels", "checks", "worst error", "status"):
        right = heading in {"checks", "worst error"}
        table.add_column(heading, overflow="fold", justify="right" if right else "left")
    for entry in numeric:
        first = entry.outcome.architecture
        for block in entry.outcome.blocks:
            levels = ", ".join(f"{part} {level}" for part, level in block.levels.items())
            passed = sum(check.status == "passed" for check in block.checks.values())
            # Checks of low precision give a ratio to upstream's own error, which is no error.
            errors = [
                one.error for name, one in block.checks.items() if one.error is not None and "float16" not in name
            ]
            worst = f"{max(errors):.1e}" if errors else ""
            status = Text(block.status, style=_STATUS_STYLES[block.status])
            class_name = block.class_name.rpartition(".")[2]
            table.add_row(first, class_name, block.model, levels, f"{passed}/{len(block.checks)}", worst, status)
            first = ""
        if not entry.outcome.blocks:
            status = Text(entry.outcome.status, style=_STATUS_STYLES[entry.outcome.status])
            table.add_row(first, "", "", "", "0", "", status)
    return table


def _details(entry: Entry) -> Iterator[tuple[str, str]]:
    """Lines, each with its style."""
    finding = entry.finding
    where = one_line(f"{finding.architecture}, {entry.release.package} {finding.release}")
    if entry.diagnosis:
        yield f"{entry.verdict}: {where}", STYLES[entry.verdict]
        for line in explanation(entry.diagnosis):
            yield f"  {line}", _edit_style(line)
        yield from ((f"  {one_line(said)}", "") for said in differences(entry.release, finding))
    elif entry.verdict == "partial":
        yield f"partial: {where}: {one_line(finding.class_name)} {entry.part}", STYLES["partial"]
        yield from ((f"  {indented(reason)}", "") for reason in entry.outcome.reasons)
        yield from ((f"  {one_line(said)}", "") for said in differences(entry.release, finding))
    elif entry.verdict == "absent" and (told := differences(entry.release, finding)):  # described, and not there
        yield f"absent: {where}: {one_line(finding.class_name)} {entry.part}", STYLES["partial"]
        yield from ((f"  {indented(reason)}", "") for reason in entry.outcome.reasons)
        yield from ((f"  {one_line(said)}", "") for said in told)


def _edit_style(line: str) -> str:
    return {"+": "green", "-": "red"}.get(line.strip()[:1], "") if line.startswith("    ") else ""


def _sum(report: CheckReport) -> Text:
    counts = Counter(entry.verdict for entry in report.entries)
    said = [f"{counts[verdict]} {verdict}" for verdict in STYLES if counts[verdict]]
    if report.peft is not None:
        verdicts = Counter(entry.verdict for entry in report.peft.entries)
        said.append(f"PEFT's layers: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.items())}")
    if report.numeric:
        passed = sum(not entry.failed for entry in report.numeric)
        said.append(f"numbers equal in {passed} of {len(report.numeric)} architectures")
    elif report.peft is None or not report.peft.numeric:
        said.append("no model was run")
    if report.peft is not None and report.peft.numeric:
        passed = sum(not one.failed for one in report.peft.numeric)
        said.append(f"numbers equal in {passed} of {len(report.peft.numeric)} readers")
    verdict = "not verified" if report.failed else "verified"
    if report.empty:
        verdict = "nothing to verify"
    return Text(f"{verdict}: {'; '.join(said)}", style="bold red" if report.failed else "bold green")
