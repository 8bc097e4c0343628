"""A check report for machines: JSON, JUnit XML, and annotations of GitHub Actions. A skip is never shown as a pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from patchkit.arch.registry import find
from patchkit.check.results.peft import PeftReport, peft_json, reader_explanation, reader_summary
from patchkit.check.results.report import CheckReport, Entry, NumericEntry
from patchkit.check.static.drift import Diagnosis, architecture_file
from patchkit.escaping import indented, json_text, one_line, workflow_command, xml_text
from patchkit.rewrite import REWRITE_VERSION
from patchkit.upstream.release import Release
from patchkit.version import __version__


def summary(entry: Entry) -> str:
    """An entry in one line."""
    rules = " + ".join(entry.outcome.rules)
    since = f" (compared with {entry.since})" if entry.since else ""
    return f"{entry.verdict}{f' by {rules}' if rules else ''}{since}"


def explanation(diagnosis: Diagnosis) -> Iterator[str]:
    """What a person needs to know of a part that failed, in lines."""
    place = f"{diagnosis.path}:{diagnosis.line}" if diagnosis.line else diagnosis.path
    yield one_line(f"{place}: class {diagnosis.class_name}, {diagnosis.part}")
    yield one_line(f"  expected: {diagnosis.expected}")
    yield one_line(f"  found: {diagnosis.found}")
    if diagnosis.text:
        yield one_line(f"    {diagnosis.line} | {diagnosis.text}")
    if diagnosis.edit is None:
        yield "  no other name in the architecture file repairs it: the code itself has changed"
        return
    yield "  this edit of the architecture file repairs it:"
    edit = diagnosis.edit
    lines = edit.diff.splitlines() or [f"- {edit.before}", f"+ {edit.after}"]
    yield from (one_line(f"    {line}") for line in lines)


def as_json(report: CheckReport) -> str:
    """Everything, as one JSON object with sorted keys."""
    releases = [
        {"version": r.version, "package": r.package, "origin": r.origin, "hash": r.hash_note} for r in report.releases
    ]
    data = {
        "patchkit": __version__,
        "rewrite": REWRITE_VERSION,
        "verified": not report.failed,
        "releases": releases,
        "results": [_json_entry(entry) for entry in report.entries],
        "numeric": [
            {"release": entry.release.version, "status": entry.outcome.status, **asdict(entry.outcome)}
            for entry in report.numeric
        ],
    }
    if report.peft is not None:
        data["peft"] = peft_json(report.peft)
    return json_text(data)


def _json_entry(entry: Entry) -> dict[str, Any]:
    finding = entry.finding
    data: dict[str, Any] = {
        "release": finding.release,
        "architecture": finding.architecture,
        "class": finding.class_name,
        "part": entry.part,
        "verdict": entry.verdict,
        "failed": entry.failed,
        "rules": list(entry.outcome.rules),
        "reasons": list(entry.outcome.reasons),
        "compared_with": entry.since or None,
        "proof": entry.proof.stage if entry.proof else None,
        "path": finding.path,
        "line": finding.line or None,
        "source": finding.source or None,
    }
    if entry.diagnosis:
        found = entry.diagnosis
        edit = {"before": found.edit.before, "after": found.edit.after, "diff": found.edit.diff} if found.edit else None
        data["diagnosis"] = {"line": found.line or None, "expected": found.expected, "found": found.found, "edit": edit}
    return data


def numeric_faults(entry: NumericEntry) -> Iterator[str]:
    """Why the numeric stage did not pass, in lines."""
    outcome = entry.outcome
    for block in outcome.blocks:
        if block.status != "passed":
            yield indented(f"{block.class_name} in {block.model}: {block.status}: {block.reason}")
    for name, reason in {**(outcome.unpatched or {}), **(outcome.problems or {})}.items():
        yield indented(f"{name}: {reason}")


def as_junit(report: CheckReport) -> str:
    """One test suite for each release and stage, one test case for each part of each class (numeric: each class)."""
    root = ElementTree.Element("testsuites", name="patchkit check")
    for release in report.releases:
        suite = ElementTree.SubElement(root, "testsuite", name=f"{release.package} {release.version} static")
        for entry in report.entries:
            if entry.release == release:
                _static_case(suite, entry)
        numeric = [entry for entry in report.numeric if entry.release == release]
        for environment in dict.fromkeys(entry.environment for entry in numeric):
            suite = ElementTree.SubElement(root, "testsuite", name=f"{environment} numeric")
            for shown in numeric:
                if shown.environment == environment:
                    _numeric_cases(suite, shown)
    if report.peft is not None:
        for release in report.peft.releases:
            _peft_suites(root, report.peft, release)
    for suite in root:
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("*/failure"))))
        suite.set("skipped", str(len(suite.findall("*/skipped"))))
    for element in root.iter():
        element.attrib.update({name: xml_text(value) for name, value in element.attrib.items()})
        element.text = xml_text(element.text or "")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _static_case(suite: ElementTree.Element, entry: Entry) -> None:
    finding = entry.finding
    name = f"{finding.class_name} {entry.part}"
    case = ElementTree.SubElement(suite, "testcase", classname=f"patchkit.static.{finding.architecture}", name=name)
    if entry.failed:
        failure = ElementTree.SubElement(case, "failure", message=summary(entry), type=entry.verdict)
        failure.text = "\n".join(explanation(entry.diagnosis)) if entry.diagnosis else ""
    elif entry.skipped:
        reasons = "; ".join(entry.outcome.reasons)
        ElementTree.SubElement(case, "skipped", message=f"{summary(entry)}: {reasons}")


def _peft_suites(root: ElementTree.Element, report: PeftReport, release: Release) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=f"peft {release.version} static")
    for entry in report.entries:
        if entry.release == release:
            case = ElementTree.SubElement(
                suite, "testcase", classname="patchkit.static.peft", name=entry.finding.reader
            )
            if entry.failed:
                failure = ElementTree.SubElement(case, "failure", message=reader_summary(entry), type=entry.verdict)
                failure.text = "\n".join(reader_explanation(entry))
            elif entry.verdict == "absent":
                ElementTree.SubElement(case, "skipped", message=reader_summary(entry))
    if numeric := [one for one in report.numeric if one.release == release]:
        suite = ElementTree.SubElement(root, "testsuite", name=f"peft {release.version} numeric")
        for one in numeric:
            case = ElementTree.SubElement(suite, "testcase", classname="patchkit.numeric.peft", name=one.outcome.reader)
            if one.failed:
                ElementTree.SubElement(case, "failure", message=one.outcome.reason, type=one.outcome.status)


def _numeric_cases(suite: ElementTree.Element, entry: NumericEntry) -> None:
    outcome = entry.outcome
    classname = f"patchkit.numeric.{outcome.architecture}"
    for block in outcome.blocks:
        name = f"{block.class_name.rpartition('.')[2]} in {block.model}"
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=name)
        if block.status != "passed":
            ElementTree.SubElement(case, "failure", message=block.reason or block.status, type=block.status)
    for name, reason in {**(outcome.unpatched or {}), **(outcome.problems or {})}.items():
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=name)
        ElementTree.SubElement(case, "failure", message=reason, type="inapplicable")


def as_github(report: CheckReport) -> Iterator[str]:
    """Workflow commands, at the architecture file: an error for a failure, a warning for what is partly rewritten."""
    for entry in report.entries:
        if not (entry.failed or entry.verdict == "partial"):
            continue
        finding = entry.finding
        lines = explanation(entry.diagnosis) if entry.diagnosis else entry.outcome.reasons
        text = "\n".join([summary(entry), *lines])
        title = f"{finding.architecture}: {finding.class_name} {entry.part}, {entry.release.package} {finding.release}"
        yield _command("error" if entry.failed else "warning", finding.architecture, title, text)
    for shown in report.numeric:
        if shown.failed:
            architecture = shown.outcome.architecture
            title = f"{architecture}: numbers not proven equal, {shown.environment}"
            yield _command("error", architecture, title, "\n".join(numeric_faults(shown)))
    if report.peft is not None:
        yield from _of_peft(report.peft)


def _of_peft(report: PeftReport) -> Iterator[str]:
    place = {"file": "patchkit/adapters/peft_sources.py"}
    for entry in report.entries:
        if entry.failed:
            text = "\n".join([reader_summary(entry), *reader_explanation(entry)])
            yield workflow_command(
                "error", text, **place, title=f"{entry.finding.reader}, peft {entry.release.version}"
            )
    for one in report.numeric:
        if one.failed:
            title = f"{one.outcome.reader}: numbers not proven equal, peft {one.release.version}"
            yield workflow_command("error", one_line(one.outcome.reason), **place, title=title)


def _command(kind: str, architecture: str, title: str, text: str) -> str:
    file = architecture_file(find(architecture))  # a plugin's file is elsewhere
    place = {"file": f"patchkit/arch/{file.name}"} if file else {}
    return workflow_command(kind, text, **place, title=title)
