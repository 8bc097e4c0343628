"""When an entry, a numeric entry and a whole report have failed, and what an entry is made of."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of

from patchkit.arch.registry import find
from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome, Status
from patchkit.check.results.report import CheckReport, Entry, NumericEntry, entries_of
from patchkit.check.static.findings import Finding, findings_of, key_of_finding
from patchkit.check.static.records import Records
from patchkit.check.static.verdicts import PartOutcome, Verdict
from patchkit.trust.ledger import Key, Proof, add_proofs, user_ledger
from patchkit.upstream.release import Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
RELEASE = Release("5.91.0", Path("a"), "wheel")
PROOF = Proof(Key("m.LlamaMLP", "a" * 64, 1), "numeric", {"mlp": "fused"}, {"eval": 1e-7}, VERSIONS, "2026-01-02")


def entry(verdict: Verdict, proof: Proof | None = None) -> Entry:
    outcomes = {"mlp": PartOutcome(("gated-mlp",)), "o": PartOutcome(("output-call",))}
    finding = Finding("5.91.0", "llama", "LlamaMLP", "LlamaMLP", "m.LlamaMLP", "m.py", 3, "a" * 64, outcomes)
    return Entry(RELEASE, finding, "mlp", verdict, "", proof, None)


JUDGED = {
    # failed, failed although the numbers are proven, and skipped if it has not failed
    "rewritten": (False, False, False),
    "partial": (False, False, True),
    "absent": (False, False, True),
    "rewritten differently": (True, False, False),
    "drifted": (True, True, False),
    "unmatched": (True, True, False),
}


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_each_verdict(verdict: Verdict) -> None:
    failed, proven, skipped = JUDGED[verdict]
    assert (entry(verdict).failed, entry(verdict, PROOF).failed) == (failed, proven)
    assert (entry(verdict).skipped, entry(verdict, PROOF).skipped) == (skipped, skipped)
    assert entry(verdict).outcome.rules == ("gated-mlp",)


def numeric(status: Status) -> NumericEntry:
    shown = BlockOutcome("m.LlamaMLP", "a" * 64, "llama", status, {"mlp": "fused"}, {})
    return NumericEntry(RELEASE, ArchitectureOutcome("llama", VERSIONS, (shown,)))


@pytest.mark.parametrize("status", get_args(Status))
def test_each_status(status: Status) -> None:
    assert numeric(status).failed is (status != "passed")


REPORTS = {
    # verdicts, statuses: empty, failed
    ((), ()): (True, True),
    (("absent",), ()): (True, True),
    (("absent", "absent"), ("passed",)): (True, True),
    (("absent", "rewritten"), ()): (False, False),
    (("rewritten", "partial"), ()): (False, False),
    (("rewritten", "drifted"), ()): (False, True),
    (("drifted", "rewritten"), ()): (False, True),
    (("rewritten",), ("passed", "passed")): (False, False),
    (("rewritten",), ("passed", "failed")): (False, True),
    (("rewritten",), ("inapplicable", "passed")): (False, True),
}


@pytest.mark.parametrize(("verdicts", "statuses"), REPORTS)
def test_a_whole_report(verdicts: tuple[Verdict, ...], statuses: tuple[Status, ...]) -> None:
    report = CheckReport((RELEASE,), tuple(map(entry, verdicts)), tuple(map(numeric, statuses)))
    assert (report.empty, report.failed) == REPORTS[verdicts, statuses]


TEXTS = {
    "as before": SMALL_LLAMA,
    "another MLP": SMALL_LLAMA.replace("self.down_proj(self.act_fn", "self.down_proj(self.norm(x) + self.act_fn"),
    "no MLP": SMALL_LLAMA[: SMALL_LLAMA.index("class LlamaMLP")],
}
FOUND = {
    "as before": ("rewritten", "5.90.0", False),
    "another MLP": ("rewritten differently", "5.90.0", True),
    "no MLP": ("drifted", "5.90.0", True),
}


@pytest.mark.parametrize(("case", "known", "proven"), list(itertools.product(TEXTS, [True, False], [True, False])))
def test_what_an_entry_is_made_of(case: str, known: bool, proven: bool, tmp_path: Path) -> None:
    """The verdict against the records, the proof from the ledger, and an explanation where a person is needed."""
    records = Records()
    if known:
        records = records_of(folder_release(tmp_path / "old", "5.90.0", {path_of("llama"): SMALL_LLAMA}), "llama")
    release = folder_release(tmp_path / "new", "5.91.0", {path_of("llama"): TEXTS[case]})
    findings = {finding.class_name: finding for finding in findings_of(release, find("llama"))}
    if proven:
        keys = [key_of_finding(one) for one in findings.values() if one.source]
        add_proofs(user_ledger(), [Proof(key, "numeric", {}, {"eval": 1e-7}, VERSIONS, "2026-01-02") for key in keys])
    verdict, since, explained = FOUND[case]
    if not known:
        verdict, since, explained = (
            {"as before": "rewritten", "another MLP": "partial", "no MLP": "absent"}[case],
            "",
            False,
        )
    (mlp,) = entries_of(release, findings["LlamaMLP"], records)
    assert (mlp.verdict, mlp.since, mlp.diagnosis is not None) == (verdict, since, explained)
    assert (mlp.proof is not None) == (proven and case != "no MLP")
    assert (mlp.release, mlp.finding, mlp.part) == (release, findings["LlamaMLP"], "mlp")
    qkv, output = entries_of(release, findings["LlamaAttention"], records)
    assert [(one.part, one.verdict, one.since) for one in (qkv, output)] == [
        ("qkv", "rewritten", "5.90.0" if known else ""),
        ("o", "rewritten", "5.90.0" if known else ""),
    ]
