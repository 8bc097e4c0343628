"""What the numbers of a process are held against: each kind of block, with the findings of a release that are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from patchkit.arch.registry import find
from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome
from patchkit.check.results import evidence
from patchkit.check.results.evidence import Evidence, as_text_has_it
from patchkit.check.results.report import CheckReport, Entry
from patchkit.check.static.findings import Finding, key_of_finding
from patchkit.check.static.verdicts import PartOutcome
from patchkit.trust.ledger import Key, Proof
from patchkit.upstream.release import Release

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
RELEASE = Release("5.90.0", Path("/nowhere"), "wheel")
MODULE = "transformers.models.llama.modeling_llama"


def finding(name="LlamaMLP", *, source="a", rules=("gated-mlp",), architecture="llama", block=""):
    parts = {"mlp": PartOutcome(tuple(rules))}
    owner = f"{MODULE}.{name}"
    return Finding("5.90.0", architecture, block or name, name, owner, "path.py", 3, source * 64, parts)


def proof_of(one, *, outside=""):
    key = replace_outside(key_of_finding(one), outside)
    return Proof(key, "numeric", {"mlp": "fused"}, {"eval": 1e-7}, VERSIONS, "2026-01-02")


def replace_outside(key: Key, outside: str) -> Key:
    return key._replace(outside=outside * 64)


def block(one, status="passed", *, proven=True, outside=""):
    line = proof_of(one, outside=outside).to_line() if proven else None
    return BlockOutcome(
        one.owner, one.source, "llama", status, {"mlp": "fused"}, {}, "" if status == "passed" else "no", line
    )


def outcome(*blocks, problems=None, architecture="llama"):
    return ArchitectureOutcome(architecture, VERSIONS, blocks, {"Other": "why"}, problems, 3.0)


MLP, ATTENTION, OTHER = finding(), finding("LlamaAttention", source="b"), finding(source="c")


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """The architectures that are looked for besides; the release has nothing of them but a block of gemma."""
    names = []

    def findings_of(release, architecture):
        assert release is RELEASE
        names.append(architecture.name)
        return [finding("GemmaMLP", source="d", architecture="gemma")] if architecture.name == "gemma" else []

    known = {name: find(name) for name in ("llama", "gemma", "mistral")}
    known["acme"] = replace(known["gemma"], name="acme", module="acme.modeling")
    monkeypatch.setattr(evidence, "findings_of", findings_of)
    monkeypatch.setattr(evidence, "architectures", lambda: known)
    return names


UNSEEN = "its numbers are of a source that transformers 5.90.0 does not have at /nowhere"
NO_NUMBERS = "it is rewritten, but no model showed its numbers"
CASES = {
    # the findings, what the process said, and what is left of it: how many blocks, the problems, the status
    "all of it": ([MLP, ATTENTION], outcome(block(MLP), block(ATTENTION)), 2, {}, "passed"),
    "one is missing": ([MLP, ATTENTION], outcome(block(MLP)), 1, {"LlamaAttention": NO_NUMBERS}, "inapplicable"),
    "one failed": ([MLP, ATTENTION], outcome(block(MLP, "failed", proven=False)), 1, {}, "failed"),
    "nothing applies": ([MLP], outcome(block(MLP, "inapplicable", proven=False)), 1, {}, "inapplicable"),
    "of another source": ([MLP], outcome(block(OTHER)), 0, {MLP.owner: UNSEEN}, "inapplicable"),
    "one of another source": (
        [MLP, ATTENTION], outcome(block(MLP), block(replace(ATTENTION, source="e" * 64))), 1, {ATTENTION.owner: UNSEEN}, "inapplicable",
    ),
    "a problem": ([MLP], outcome(block(MLP), problems={"x": "y"}), 1, {"x": "y"}, "inapplicable"),
    "a problem and another source": ([MLP], outcome(block(OTHER), problems={"x": "y"}), 0, {"x": "y", MLP.owner: UNSEEN}, "inapplicable"),
    "with code elsewhere": ([MLP], outcome(block(MLP, outside="f")), 1, {}, "passed"),
    "what is not rewritten needs none": ([MLP, finding("LlamaAttention", rules=())], outcome(block(MLP)), 1, {}, "passed"),
    "one class of a block is enough": ([MLP, finding("Heir", source="e", block="LlamaMLP")], outcome(block(MLP)), 1, {}, "passed"),
    "the heir of a block is enough": (
        [MLP, finding("Heir", source="e", block="LlamaMLP")], outcome(block(finding("Heir", source="e"))), 1, {}, "passed",
    ),
    "of another architecture": ([MLP], outcome(block(MLP), block(finding("GemmaMLP", source="d"))), 2, {}, "passed"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_believed(case):
    findings, told, count, problems, status = CASES[case]
    before = dict(told.problems) if told.problems else None
    found = Evidence(RELEASE, findings).weighed(told)
    assert (len(found.blocks), found.problems, found.status) == (count, problems, status)
    assert found == replace(told, blocks=found.blocks, problems=found.problems)
    assert all(one in told.blocks for one in found.blocks)
    assert told.problems == before


def test_other_architectures_are_looked_for_when_they_are_needed(asked):
    """Once, those of the same package, and only where a proof is of none of the known ones."""
    one = Evidence(RELEASE, [MLP])
    one.weighed(outcome(block(MLP)))
    assert asked == []
    one.weighed(outcome(block(OTHER)))
    assert asked == ["gemma", "mistral"]
    one.weighed(outcome(block(OTHER)))
    assert asked == ["gemma", "mistral"]


def test_the_evidence_of_a_report_is_of_its_release():
    other = Release("5.91.0", Path("/elsewhere"), "wheel")
    entries = [
        Entry(release, found, "mlp", "rewritten", "", None, None)
        for release, found in ((RELEASE, MLP), (other, OTHER), (RELEASE, finding("GemmaMLP", architecture="gemma")))
    ]
    known = Evidence.of(RELEASE, CheckReport((RELEASE, other), tuple(entries))).known
    assert {name: [one.class_name for one in found] for name, found in known.items()} == {
        "llama": ["LlamaMLP"], "gemma": ["GemmaMLP"],
    }  # fmt: skip
    assert known["llama"] == [MLP]


def test_a_key_as_text_has_it():
    key = key_of_finding(MLP)
    assert as_text_has_it(key) == key
    assert as_text_has_it(replace_outside(key, "f")) == key
    assert as_text_has_it(key._replace(description="GatedMLP()")).description == "GatedMLP()"
