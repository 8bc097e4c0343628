"""The record that a finding is held against: of the same class, of an earlier release, and the last that was rewritten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from patchkit.check.static.findings import Finding
from patchkit.check.static.records import Record, Records
from patchkit.check.static.verdicts import PartOutcome

WHOLE, NOTHING = PartOutcome(("gated-mlp",)), PartOutcome((), ("line 3: no rule knows it",))


def record(release: str, outcome: PartOutcome = WHOLE, **changes: str) -> Record:
    finding = Finding(release, "llama", "LlamaMLP", "LlamaMLP", "m.LlamaMLP", "m.py", 3, "0" * 64, {"mlp": outcome})
    return Record(replace(finding, **changes), {"mlp": "rewritten"}, 1, "0", "2026-01-02")


KNOWN = {
    # records: the release that 5.10.0 is held against
    "none": ([], None),
    "an earlier one": ([record("5.9.0")], "5.9.0"),
    "the last earlier one": ([record("4.50.0"), record("5.2.0"), record("5.9.0")], "5.9.0"),
    "not in the order of text": ([record("5.2.0"), record("5.9.1")], "5.9.1"),
    "itself": ([record("5.10.0")], None),
    "an earlier one and itself": ([record("5.9.0"), record("5.10.0")], "5.9.0"),
    "a later one": ([record("5.11.0")], None),
    "an earlier and a later one": ([record("5.9.0"), record("5.11.0")], "5.9.0"),
    "one that was not rewritten": ([record("5.9.0", NOTHING)], None),
    "the last that was": ([record("5.8.0"), record("5.9.0", NOTHING)], "5.8.0"),
    "another architecture": ([record("5.9.0", architecture="gemma")], None),
    "another block": ([record("5.9.0", block="Other")], None),
    "another class": ([record("5.9.0", class_name="Heir")], None),
    "of another file": ([record("5.9.0", path="other.py", owner="other.LlamaMLP")], "5.9.0"),
}


@pytest.mark.parametrize("case", KNOWN)
def test_what_a_finding_is_held_against(case: str) -> None:
    entries, expected = KNOWN[case]
    for outcome, verdict in ((WHOLE, "rewritten"), (NOTHING, "drifted" if expected else "unmatched")):
        finding = record("5.10.0", outcome).finding
        found = Records(entries).before(finding, "mlp")
        assert (found.finding.release if found else None) == expected
        assert Records(entries).judged(finding) == {"mlp": verdict}


@pytest.mark.parametrize("order", [1, -1])
def test_records_are_kept_in_the_order_of_releases(order: int, tmp_path) -> None:
    """However they come, and however the file is sorted."""
    entries = [record(release) for release in ("4.9.0", "4.50.0", "5.2.0", "5.10.0")]
    records = Records([]).with_findings([one.finding for one in entries[::order]], "2026-01-02")
    assert [one.finding.release for one in records.entries] == ["4.9.0", "4.50.0", "5.2.0", "5.10.0"]
    assert list(map(str, records.releases())) == ["4.9.0", "4.50.0", "5.2.0", "5.10.0"]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(f"{one.to_line()}\n" for one in records.entries[::order]))
    assert Records.load(path).entries == records.entries
