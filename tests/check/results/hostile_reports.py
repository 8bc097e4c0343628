"""Check reports in which everything that a release can choose is any text."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.results.report import CheckReport, Entry, NumericEntry
from patchkit.check.static.drift import Diagnosis, Edit
from patchkit.check.static.findings import Finding
from patchkit.check.static.records import Record
from patchkit.check.static.verdicts import PartOutcome
from patchkit.trust.ledger import Key, Proof
from patchkit.upstream.release import Release


def reports(text: st.SearchStrategy[str]) -> st.SearchStrategy[CheckReport]:
    """Reports of one class of llama in one release."""
    return st.builds(report, text, text, text, st.sampled_from(["drifted", "partial", "absent", "rewritten"]))


def finding(first: str, second: str, third: str) -> Finding:
    outcome = PartOutcome(("call-alone",), (first, second))
    return Finding(third, "llama", first, second, third, first, 3, "0" * 64, {"qkv": outcome}, "")


def report(first: str, second: str, third: str, verdict: str) -> CheckReport:
    release = Release(third, Path(), first, second)
    edit = Edit(first, second, third)
    diagnosis = Diagnosis(first, 3, second, "qkv", third, first, second, edit if first else None)
    entry = Entry(release, finding(first, second, third), "qkv", verdict, third, None, diagnosis)
    numeric = ArchitectureOutcome("llama", {}, (), {first: second}, {second: third})
    return CheckReport((release,), (entry,), (NumericEntry(release, numeric),))


def record(first: str, second: str, third: str) -> Record:
    """What a file of records may hold, but for the release, which must be a version."""
    found = finding(first, second, "5.90.0")
    return Record(found, {"qkv": "rewritten"}, 1, second, third)


def proof(key: Key, text: str) -> Proof:
    return Proof(key, "numeric", {}, {"forward_backward": 1e-7}, {"torch": "2.13.0", "peft": "0.21.2"}, text)
