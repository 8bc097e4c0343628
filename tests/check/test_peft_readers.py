"""The numeric stage for PEFT's layers: what a process says is believed only of the text that was read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from peft_checkouts import CHANGED_SCALING, peft_release

from patchkit.adapters.peft_known import find_reader_proof, shipped_proofs
from patchkit.adapters.peft_sources import READERS
from patchkit.check import peft_readers
from patchkit.check.numeric.environments import Beside, Environment
from patchkit.check.numeric.reader_outcomes import CaseOutcome, ReaderOutcome
from patchkit.check.peft_readers import beside_of, check_peft, prove_peft
from patchkit.check.static.peft_layers import ReaderRecords, findings_in
from patchkit.errors import WorkerLostError
from patchkit.upstream.release import INSTALLED, WHEEL, Release

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0", "peft": "0.91.0", "python": "3.11.7"}
CONCERNED = {"Linear", "Linear, DoRA"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def report(tmp_path, monkeypatch):
    known, changed = peft_release(tmp_path / "a", "0.90.0"), peft_release(tmp_path / "b", "0.91.0", CHANGED_SCALING)
    monkeypatch.setattr(peft_readers, "fetch", lambda *_: known)
    return check_peft([changed], ReaderRecords().with_findings(findings_in(known), "2026-01-02"))


@pytest.fixture
def processes(monkeypatch):
    """Stands in for environment and processes. Holds what was asked for, and what is answered by reader."""
    asked, answers = [], {}

    def environment_for(release, *, seconds, beside):
        asked.append((release, beside))
        return Environment(Path("python"), VERSIONS, Path("place"), Path("environment"))

    def ask_all(kind, requests, jobs):
        assert kind.shown[-1] == "bitsandbytes", "an environment hides what transformers does not need"
        for index, request in enumerate(requests):
            reader = request.decode().split('"')[3]
            asked.append(reader)
            yield index, answers[reader]

    monkeypatch.setattr(peft_readers, "environment_for", environment_for)
    monkeypatch.setattr(peft_readers, "ask_all", ask_all)
    return asked, answers


def passed(entry, **changes):
    case = CaseOutcome("LoRA", "passed", {"eval": 1e-15})
    outcome = ReaderOutcome(entry.finding.reader, entry.finding.source, VERSIONS, (case,))
    return dataclasses.replace(outcome, **changes).to_json().encode()


def answer_all(report, answers, **changes):
    answers.update({entry.finding.reader: passed(entry, **changes) for entry in report.entries})


def test_a_change_that_is_proven_is_no_failure_and_is_remembered(report, processes):
    asked, answers = processes
    answer_all(report, answers)
    assert report.failed
    proven = prove_peft(report, unproven=True)
    assert not proven.failed
    assert asked[0] == (None, beside_of(report.releases[0]))
    assert set(asked[1:]) == CONCERNED, "the others are proven already, for this text"
    assert {entry.finding.reader for entry in proven.entries if entry.verdict == "changed"} == CONCERNED
    for entry in proven.entries:
        assert find_reader_proof(entry.finding.reader, entry.finding.source) is not None
    again = check_peft(report.releases, ReaderRecords())
    assert {entry.verdict for entry in again.entries} == {"known"}
    assert CONCERNED.isdisjoint(
        {reader for reader, source in shipped_proofs() if source == again.entries[0].finding.source}
    )


def test_every_reader_runs_where_that_is_not_left_out(report, processes):
    asked, answers = processes
    answer_all(report, answers)
    prove_peft(report)
    assert set(asked[1:]) == set(READERS)


def test_each_torch_is_another_environment(report, processes):
    asked, answers = processes
    answer_all(report, answers)
    prove_peft(report, torch=["2.8.0", "2.9.0"])
    assert [one[1].torch for one in asked if isinstance(one, tuple)] == ["2.8.0", "2.9.0"]
    assert {one[1].peft_version for one in asked if isinstance(one, tuple)} == {"0.91.0"}


WRONG = {
    "it failed": {"cases": (CaseOutcome("LoRA", "failed", {}, "eval: 1e-3"),)},
    "it runs upstream": {"cases": (CaseOutcome("LoRA", "inapplicable", {}, "it runs at upstream level: x"),)},
    "nothing was run": {"cases": ()},
    "another text": {"source": "0" * 64},
    "another PEFT": {"versions": {**VERSIONS, "peft": "0.21.2"}},
    "another reader": {"reader": "Linear4bit"},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_proof(case, report, processes):
    _, answers = processes
    answer_all(report, answers, **WRONG[case])
    proven = prove_peft(report, unproven=True)
    assert proven.failed
    assert {entry.finding.reader for entry in proven.entries if entry.failed} == CONCERNED
    assert all(one.outcome.status != "passed" for one in proven.numeric)
    for entry in proven.entries:
        if entry.finding.reader in CONCERNED:
            assert find_reader_proof(entry.finding.reader, entry.finding.source) is None


@pytest.mark.parametrize("said", [b"", b"[]", b'{"reader": "Linear"}', WorkerLostError("it ended with exit code 9")])
def test_a_process_that_does_not_answer_is_a_problem_of_its_reader(said, report, processes):
    _, answers = processes
    answer_all(report, answers)
    answers["Linear"] = said
    proven = prove_peft(report, unproven=True)
    assert {one.outcome.reader: one.failed for one in proven.numeric} == {"Linear": True, "Linear, DoRA": False}
    assert "exit code 9" in proven.numeric[0].outcome.reason or "what is no outcome" in proven.numeric[0].outcome.reason


BESIDE = {
    "installed": (Release("0.21.2", Path(), INSTALLED, package="peft"), Beside()),
    "wheel": (Release("0.20.0", Path(), WHEEL, package="peft"), Beside("peft==0.20.0", "0.20.0")),
    "none": (None, Beside()),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_an_environment_is_asked_for(case):
    release, expected = BESIDE[case]
    assert beside_of(release) == expected
    assert beside_of(release, "2.8.0") == dataclasses.replace(expected, torch="2.8.0")
