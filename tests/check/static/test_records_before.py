"""The record that a finding is held against: of the same class, of an earlier release, and the last that was rewritten."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from patchkit.arch.spec import PARTS
from patchkit.check.static.findings import Finding
from patchkit.check.static.records import Record, Records
from patchkit.check.static.verdicts import PartOutcome, Verdict
from patchkit.errors import CacheError
from patchkit.rewrite import REWRITE_VERSION
from patchkit.version import __version__

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


# ---- a line


def test_a_line_says_each_field_and_is_read() -> None:
    """Also of a class with every part that there is."""
    outcomes = {part: PartOutcome(("a", "b"), (f"of {part}",)) for part in PARTS}
    given = record("5.9.0", rewritten="b" * 64)
    given = replace(
        given,
        finding=replace(given.finding, parts=outcomes),
        verdicts=dict(zip(PARTS, itertools.cycle(get_args(Verdict)), strict=False)),
    )
    data = json.loads(given.to_line())
    assert data["parts"]["qkv"] == {"verdict": "rewritten", "rules": ["a", "b"], "reasons": ["of qkv"]}
    assert {name: value for name, value in data.items() if name != "parts"} == {
        "release": "5.9.0", "architecture": "llama", "block": "LlamaMLP", "class": "LlamaMLP", "owner": "m.LlamaMLP", "path": "m.py",
        "line": 3, "source": "0" * 64, "rewritten": "b" * 64, "rewrite": 1, "patchkit": "0", "date": "2026-01-02",
    }  # fmt: skip
    assert Record.from_line(given.to_line()) == given


WRONG: dict[str, dict[str, Any]] = {
    "a verdict that there is not": {"parts": {"mlp": {"verdict": "fine", "rules": [], "reasons": []}}},
    "a part that there is not": {"parts": {"gate": {"verdict": "rewritten", "rules": [], "reasons": []}}},
    "no verdict": {"parts": {"mlp": {"rules": [], "reasons": []}}},
    "no rules": {"parts": {"mlp": {"verdict": "rewritten", "reasons": []}}},
    "rules as a number": {"parts": {"mlp": {"verdict": "rewritten", "rules": 1, "reasons": []}}},
    "parts as a list": {"parts": []},
    "no version": {"release": "new"},
    "a version as a number": {"release": 5},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_damaged_line_is_named(case: str, tmp_path: Path) -> None:
    lines = [record(release).to_line() for release in ("5.1.0", "5.2.0", "5.3.0")]
    lines[1] = json.dumps(json.loads(lines[1]) | WRONG[case])
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(["", *lines, ""]))
    with pytest.raises(CacheError, match=r"records\.jsonl:3 is damaged: .*; restore the file, or delete the line"):
        Records.load(path)


@pytest.mark.parametrize(
    "field",
    [
        "release",
        "architecture",
        "block",
        "class",
        "owner",
        "path",
        "line",
        "source",
        "rewritten",
        "rewrite",
        "patchkit",
        "date",
        "parts",
    ],
)
def test_each_field_is_needed(field: str) -> None:
    data = json.loads(record("5.1.0").to_line())
    del data[field]
    with pytest.raises(ValueError, match=f"KeyError: '{field}'"):
        Record.from_line(json.dumps(data))


def test_a_file_that_is_not_there_and_one_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Records.load(tmp_path / "none.jsonl") == Records()
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff")
    for place in (tmp_path, tmp_path / "bytes.jsonl"):
        with pytest.raises(CacheError, match="cannot be read"):
            Records.load(place)
    Records([record("5.1.0")]).save(tmp_path / "own.jsonl")
    monkeypatch.setattr("patchkit.check.static.records.SHIPPED_RECORDS", tmp_path / "own.jsonl")
    assert Records.load().entries == [record("5.1.0")]


SAME = {
    # a change of what is known: whether it keeps its date and version
    "nothing": ({}, True),
    "another source": ({"source": "1" * 64}, False),
    "another line": ({"line": 4}, False),
    "another rewritten method": ({"rewritten": "1" * 64}, False),
}


@pytest.mark.parametrize("case", SAME)
def test_what_says_the_same_keeps_its_date(case: str) -> None:
    changes, same = SAME[case]
    old = replace(record("5.1.0"), rewrite=REWRITE_VERSION)
    records = Records([old, record("5.1.0", architecture="gemma"), record("5.2.0")])
    found = records.with_findings([replace(old.finding, **changes)], "2026-03-04")
    assert [(one.finding.release, one.finding.architecture) for one in found.entries] == [
        ("5.1.0", "gemma"),
        ("5.1.0", "llama"),
        ("5.2.0", "llama"),
    ]
    new = found.entries[1]
    assert (new.date, new.patchkit) == (("2026-01-02", "0") if same else ("2026-03-04", __version__))
    assert new.finding == replace(old.finding, **changes)
    assert [one.finding.architecture for one in found.of("5.1.0")] == ["gemma", "llama"]
