"""Every line and field of a report for machines, of each kind of entry, and what is left out where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome
from patchkit.check.results.formats import (
    as_github,
    as_json,
    as_junit,
    explanation,
    numeric_faults,
    summary,
)
from patchkit.check.results.report import CheckReport, Entry, NumericEntry
from patchkit.check.static.drift import Diagnosis, Edit
from patchkit.check.static.findings import Finding
from patchkit.check.static.verdicts import PartOutcome, Verdict
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust.ledger import Key, Proof
from patchkit.upstream.release import Release
from patchkit.version import __version__

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
RELEASE, OTHER = Release("5.91.0", Path("a"), "wheel", "sha256 of PyPI"), Release("5.92.0", Path("b"), "installed")
EDIT = Edit('GatedMLP("M")', 'GatedMLP("M", gate="w1")', "--- a/x\n+++ b/x\n-old\n+new")
DIAGNOSIS = Diagnosis("m.py", 12, "LlamaMLP", "mlp", "rule gated-mlp", "nothing", "x = 1", EDIT)
PROOF = Proof(Key("m.LlamaMLP", "a" * 64, 1), "numeric", {"mlp": "fused"}, {"eval": 1e-7}, VERSIONS, "2026-01-02")
WHOLE, SINGLE = PartOutcome(("gated-mlp",)), PartOutcome(("call-alone", "call-alone"), ("line 3: a norm", "line 4: x"))
NOTHING = PartOutcome((), ("absent: no class",))


def entry(
    verdict: Verdict = "rewritten",
    outcome: PartOutcome = WHOLE,
    since: str = "5.90.0",
    proof: Proof | None = None,
    diagnosis: Diagnosis | None = None,
    release: Release = RELEASE,
) -> Entry:
    finding = Finding(
        release.version, "llama", "LlamaMLP", "LlamaMLP", "m.LlamaMLP", "m.py", 3, "a" * 64, {"mlp": outcome}
    )
    return Entry(release, finding, "mlp", verdict, since, proof, diagnosis)


def block(status: str, reason: str = "", model: str = "llama") -> BlockOutcome:
    return BlockOutcome("m.LlamaMLP", "a" * 64, model, status, {"mlp": "fused"}, {}, reason)  # type: ignore[arg-type]


# ---- one line


SUMMARIES = {
    # rules and the release that it was compared with
    (("gated-mlp",), "5.90.0"): "rewritten by gated-mlp (compared with 5.90.0)",
    (("gated-mlp",), ""): "rewritten by gated-mlp",
    (("gate-call", "up-call"), "5.90.0"): "rewritten by gate-call + up-call (compared with 5.90.0)",
    ((), "5.90.0"): "rewritten (compared with 5.90.0)",
    ((), ""): "rewritten",
}


@pytest.mark.parametrize(("rules", "since"), SUMMARIES)
def test_an_entry_in_one_line(rules: tuple[str, ...], since: str) -> None:
    assert summary(entry(outcome=PartOutcome(rules), since=since)) == SUMMARIES[rules, since]


# ---- what a person needs to know


REPAIRED = ["  this edit of the architecture file repairs it:"]
EXPLANATIONS = {
    "all": ({}, "m.py:12", ["    12 | x = 1"], [*REPAIRED, "    --- a/x", "    +++ b/x", "    -old", "    +new"]),
    "no line": ({"line": 0, "text": ""}, "m.py", [], [*REPAIRED, "    --- a/x", "    +++ b/x", "    -old", "    +new"]),
    "no text": ({"text": ""}, "m.py:12", [], [*REPAIRED, "    --- a/x", "    +++ b/x", "    -old", "    +new"]),
    "the edit of a plugin": (
        {"edit": replace(EDIT, diff="")},
        "m.py:12",
        ["    12 | x = 1"],
        [*REPAIRED, '    - GatedMLP("M")', '    + GatedMLP("M", gate="w1")'],
    ),
    "no edit": (
        {"edit": None},
        "m.py:12",
        ["    12 | x = 1"],
        ["  no other name in the architecture file repairs it: the code itself has changed"],
    ),
}


@pytest.mark.parametrize("case", EXPLANATIONS)
def test_an_explanation(case: str) -> None:
    changes, place, text, edit = EXPLANATIONS[case]
    assert list(explanation(replace(DIAGNOSIS, **changes))) == [
        f"{place}: class LlamaMLP, mlp",
        "  expected: rule gated-mlp",
        "  found: nothing",
        *text,
        *edit,
    ]


@pytest.mark.parametrize("field", ["path", "class_name", "expected", "found", "text"])
def test_what_a_release_wrote_stays_in_its_line(field: str) -> None:
    shown = list(explanation(replace(DIAGNOSIS, **{field: "a\nb"})))
    assert len(shown) == len(list(explanation(DIAGNOSIS)))
    assert r"a\nb" in "\n".join(shown)


@pytest.mark.parametrize("field", ["before", "after", "diff"])
def test_what_a_release_wrote_stays_in_the_edit(field: str) -> None:
    given = Edit("old", "new", "") if field != "diff" else EDIT
    shown = list(explanation(replace(DIAGNOSIS, edit=replace(given, **{field: "a\x1b[2J"}))))
    assert r"a\x1b[2J" in "\n".join(shown)


# ---- JSON


def json_of(*entries: Entry, numeric: Sequence[NumericEntry] = ()) -> dict[str, object]:
    data: dict[str, object] = json.loads(as_json(CheckReport((RELEASE, OTHER), entries, tuple(numeric))))
    return data


RESULT = {
    "release": "5.91.0", "architecture": "llama", "class": "LlamaMLP", "part": "mlp", "verdict": "rewritten", "failed": False,
    "rules": ["gated-mlp"], "reasons": [], "compared_with": "5.90.0", "proof": None, "path": "m.py", "line": 3, "source": "a" * 64,
}  # fmt: skip

RESULTS = {
    "rewritten": (entry(), {}),
    "for the first time": (entry(since=""), {"compared_with": None}),
    "proven": (entry(proof=PROOF), {"proof": "numeric"}),
    "proven on the spot": (entry(proof=replace(PROOF, stage="spot")), {"proof": "spot"}),
    "partly": (
        entry("partial", SINGLE),
        {"verdict": "partial", "rules": ["call-alone", "call-alone"], "reasons": ["line 3: a norm", "line 4: x"]},
    ),
    "not there": (
        replace(entry("absent", NOTHING), finding=replace(entry(outcome=NOTHING).finding, line=0, source="")),
        {"verdict": "absent", "rules": [], "reasons": ["absent: no class"], "line": None, "source": None},
    ),
    "drifted": (
        entry("drifted", NOTHING, diagnosis=DIAGNOSIS),
        {
            "verdict": "drifted",
            "failed": True,
            "rules": [],
            "reasons": ["absent: no class"],
            "diagnosis": {
                "line": 12,
                "expected": "rule gated-mlp",
                "found": "nothing",
                "edit": {"before": EDIT.before, "after": EDIT.after, "diff": EDIT.diff},
            },
        },
    ),
    "drifted, and nobody knows where": (
        entry("drifted", WHOLE, diagnosis=replace(DIAGNOSIS, line=0, edit=None)),
        {
            "verdict": "drifted",
            "failed": True,
            "diagnosis": {"line": None, "expected": "rule gated-mlp", "found": "nothing", "edit": None},
        },
    ),
}


@pytest.mark.parametrize("case", RESULTS)
def test_an_entry_as_json(case: str) -> None:
    given, differs = RESULTS[case]
    data = json_of(given)
    assert data["results"] == [RESULT | differs]
    assert data["verified"] is not (given.failed or given.verdict == "absent")


def test_the_rest_of_the_json() -> None:
    outcome = ArchitectureOutcome("llama", VERSIONS, (block("failed", "eval: 0.5"),), {"A": "why"}, {"b": "c"}, 1.5)
    data = json_of(entry(), numeric=[NumericEntry(RELEASE, outcome)])
    assert (data["patchkit"], data["rewrite"], data["verified"]) == (__version__, REWRITE_VERSION, False)
    assert data["releases"] == [
        {"version": "5.91.0", "package": "transformers", "origin": "wheel", "hash": "sha256 of PyPI"},
        {"version": "5.92.0", "package": "transformers", "origin": "installed", "hash": ""},
    ]
    shown = {
        "class_name": "m.LlamaMLP",
        "source": "a" * 64,
        "model": "llama",
        "status": "failed",
        "levels": {"mlp": "fused"},
    }
    assert data["numeric"] == [
        {
            "release": "5.91.0",
            "status": "failed",
            "architecture": "llama",
            "versions": VERSIONS,
            "blocks": [shown | {"checks": {}, "reason": "eval: 0.5", "proof": None}],
            "unpatched": {"A": "why"},
            "problems": {"b": "c"},
            "seconds": 1.5,
        }
    ]


# ---- the numeric stage


NUMERIC = {
    # blocks, unpatched, problems: the lines, and (name, type, message) of each case that failed
    "passed": (("passed",), None, None, [], []),
    "one of two": (
        ("passed", "failed"),
        None,
        None,
        ["m.LlamaMLP in llama: failed: eval: 0.5"],
        [("LlamaMLP in llama", "failed", "eval: 0.5")],
    ),
    "not shown": (
        ("inapplicable",),
        {},
        {},
        ["m.LlamaMLP in llama: inapplicable: eval: 0.5"],
        [("LlamaMLP in llama", "inapplicable", "eval: 0.5")],
    ),
    "not patched": (("passed",), {"A": "why"}, None, ["A: why"], [("A", "inapplicable", "why")]),
    "a problem": (("passed",), None, {"b": "c"}, ["b: c"], [("b", "inapplicable", "c")]),
    "both": (
        (),
        {"A": "why\nnot"},
        {"b": "c"},
        ["A: why\n    not", "b: c"],
        [("A", "inapplicable", "why\nnot"), ("b", "inapplicable", "c")],
    ),
}


@pytest.mark.parametrize("case", NUMERIC)
def test_what_the_numeric_stage_showed(case: str) -> None:
    statuses, unpatched, problems, lines, failures = NUMERIC[case]
    blocks = tuple(block(status, "" if status == "passed" else "eval: 0.5") for status in statuses)
    shown = NumericEntry(RELEASE, ArchitectureOutcome("llama", VERSIONS, blocks, unpatched, problems))
    assert list(numeric_faults(shown)) == lines
    report = CheckReport((RELEASE, OTHER), (entry(), entry(release=OTHER)), (shown,))
    suites = ElementTree.fromstring(as_junit(report).encode())
    assert [suite.get("name") for suite in suites] == [
        "transformers 5.91.0 static", "transformers 5.91.0 numeric", "transformers 5.92.0 static",
    ]  # fmt: skip
    cases = suites[1].findall("testcase")
    assert len(cases) == len(statuses) + len(unpatched or {}) + len(problems or {})
    assert {found.get("classname") for found in cases} == {"patchkit.numeric.llama"}
    failed = [(found.get("name"), found.find("failure")) for found in cases if found.find("failure") is not None]
    assert [(name, one.get("type"), one.get("message")) for name, one in failed if one is not None] == failures
    counts = {name: suites[1].get(name) for name in ("tests", "failures", "skipped")}
    assert counts == {"tests": str(len(cases)), "failures": str(len(failures)), "skipped": "0"}
    errors = [
        "::error file=patchkit/arch/llama.py,title=llama%3A numbers not proven equal%2C transformers 5.91.0::"
        + "%0A".join(line.replace("\n", "%0A") for line in lines)
    ]
    equal = shown.outcome.status == "passed"
    assert list(as_github(replace(report, numeric=(shown,)))) == ([] if equal else errors)


def test_a_failure_without_a_reason_says_its_status() -> None:
    shown = NumericEntry(RELEASE, ArchitectureOutcome("llama", VERSIONS, (block("inapplicable"),)))
    suites = ElementTree.fromstring(as_junit(CheckReport((RELEASE,), (), (shown,))).encode())
    assert [one.get("message") for one in suites.iter("failure")] == ["inapplicable"]


# ---- the static stage


def static(shown: Entry) -> tuple[str, dict[str, str] | None, str]:
    """Which element a test case holds, with its attributes, and its text."""
    suites = ElementTree.fromstring(as_junit(CheckReport((RELEASE,), (shown,))).encode())
    (case,) = suites.iter("testcase")
    assert case.attrib == {"classname": "patchkit.static.llama", "name": "LlamaMLP mlp"}
    counts = tuple(suites[0].get(name) for name in ("tests", "failures", "skipped"))
    found = case[0] if len(case) else None
    kind = "" if found is None else found.tag
    assert counts == ("1", str(int(kind == "failure")), str(int(kind == "skipped")))
    return kind, None if found is None else dict(found.attrib), ("" if found is None else found.text or "")


EXPLAINED = "%0A".join(explanation(DIAGNOSIS))
STATIC = {
    "rewritten": (entry(), ("", None, ""), []),
    "partly": (
        entry("partial", SINGLE, since=""),
        ("skipped", {"message": "partial by call-alone + call-alone: line 3: a norm; line 4: x"}, ""),
        ["warning", "partial by call-alone + call-alone%0Aline 3: a norm%0Aline 4: x"],
    ),
    "not there": (entry("absent", NOTHING, since=""), ("skipped", {"message": "absent: absent: no class"}, ""), []),
    "drifted": (
        entry("drifted", NOTHING, diagnosis=DIAGNOSIS),
        (
            "failure",
            {"message": "drifted (compared with 5.90.0)", "type": "drifted"},
            "\n".join(explanation(DIAGNOSIS)),
        ),
        ["error", f"drifted (compared with 5.90.0)%0A{EXPLAINED}"],
    ),
    "drifted, without an explanation": (
        entry("drifted", SINGLE, since=""),
        ("failure", {"message": "drifted by call-alone + call-alone", "type": "drifted"}, ""),
        ["error", "drifted by call-alone + call-alone%0Aline 3: a norm%0Aline 4: x"],
    ),
    "proven by another rule": (entry("rewritten differently", SINGLE, proof=PROOF), ("", None, ""), []),
}


@pytest.mark.parametrize("case", STATIC)
def test_an_entry_of_the_static_stage(case: str) -> None:
    shown, junit, github = STATIC[case]
    assert static(shown) == junit
    title = "llama%3A LlamaMLP mlp%2C transformers 5.91.0"
    commands = [f"::{github[0]} file=patchkit/arch/llama.py,title={title}::{github[1]}"] if github else []
    assert list(as_github(CheckReport((RELEASE,), (shown,)))) == commands


def test_suites_and_cases_stand_by_release() -> None:
    report = CheckReport((RELEASE, OTHER), (entry(release=OTHER), entry(), entry()))
    suites = ElementTree.fromstring(as_junit(report).encode())
    assert {suite.get("name"): len(suite) for suite in suites} == {
        "transformers 5.91.0 static": 2, "transformers 5.92.0 static": 1,
    }  # fmt: skip
    assert as_junit(report).startswith("<?xml version=")
    assert as_junit(report).endswith("</testsuites>\n")


def test_a_command_for_a_plugin_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file lies in another repository than the one that is annotated."""
    monkeypatch.setattr("patchkit.check.results.formats.architecture_file", lambda architecture: None)
    (command,) = as_github(CheckReport((RELEASE,), (entry("drifted"),)))
    assert command.startswith("::error title=llama%3A")
