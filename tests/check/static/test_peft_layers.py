"""PEFT's layers as text: findings, records, and what changed between two releases."""

from __future__ import annotations

import pytest
from peft_checkouts import CHANGED_SCALING, peft_release

from patchkit.adapters.peft_sources import READERS, pieces_of
from patchkit.check.results.peft_matrix import PEFT_RELEASES
from patchkit.check.static.peft_layers import (
    SHIPPED_PEFT_RECORDS,
    ReaderFinding,
    ReaderRecord,
    ReaderRecords,
    changes_since,
    findings_in,
)
from patchkit.errors import CacheError

LAYER = "peft/tuners/lora/layer.py"


def recorded(*releases):
    records = ReaderRecords()
    for release in releases:
        records = records.with_findings(findings_in(release), "2026-01-02")
    return records


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return peft_release(tmp_path_factory.mktemp("known"), "0.90.0")


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    return peft_release(tmp_path_factory.mktemp("changed"), "0.91.0", CHANGED_SCALING)


def finding(release, reader):
    return next(one for one in findings_in(release) if one.reader == reader)


def test_each_reader_is_found(known):
    found = findings_in(known)
    assert [one.reader for one in found] == list(READERS)
    assert all(one.source and not one.reason and one.release == "0.90.0" for one in found)


def test_the_source_is_that_of_the_text_and_not_of_the_release(known, changed):
    same = {reader for reader in READERS if finding(known, reader).source == finding(changed, reader).source}
    assert same == set(READERS) - {"Linear", "Linear, DoRA"}


def test_what_changed_is_named_with_place_and_diff(known, changed):
    new, record = finding(changed, "Linear"), recorded(known).of("0.90.0", "Linear")
    (change,) = changes_since(new, record, lambda: pieces_of(known.read, "Linear"))
    assert (change.name, change.path, change.what) == ("Linear.forward", LAYER, "changed")
    assert changed.read(LAYER).splitlines()[change.line - 1].strip().startswith("def forward(self, x")
    assert change.diff[0] == f"--- peft-0.90.0/{LAYER}"
    added = [line for line in change.diff if line.startswith("+") and not line.startswith("+++")]
    assert [line[1:].strip() for line in added] == ["result = result + lora_B(lora_A(dropout(x))) * (2 * scaling)"]


def test_without_the_text_of_the_release_before_there_is_a_name_and_no_diff(known, changed):
    (change,) = changes_since(finding(changed, "Linear"), recorded(known).of("0.90.0", "Linear"), dict)
    assert (change.name, change.what, change.diff) == ("Linear.forward", "changed", ())


def test_nothing_is_asked_where_nothing_changed(known):
    def fail():
        raise AssertionError("asked")

    record = recorded(known).of("0.90.0", "Linear")
    assert changes_since(finding(known, "Linear"), record, fail) == ()
    assert changes_since(finding(known, "Linear"), None, fail) == ()


def test_what_is_new_and_what_is_gone(known):
    pieces = dict(finding(known, "Linear").pieces)
    gone = ReaderFinding("0.91.0", "Linear", {name: one for name, one in pieces.items() if name != "Linear.merged"})
    record = recorded(known).of("0.90.0", "Linear")
    (change,) = changes_since(gone, record, lambda: pieces)
    assert (change.name, change.what, change.path) == ("Linear.merged", "gone", "peft/tuners/tuners_utils.py")
    assert all(line.startswith("-") for line in change.diff[3:])
    less = ReaderRecord("0.90.0", "Linear", {n: p.source for n, p in gone.pieces.items()}, "0", "2026-01-02")
    (change,) = changes_since(finding(known, "Linear"), less, dict)
    assert (change.name, change.what) == ("Linear.merged", "new")


def record(release, *sources):
    return ReaderRecord(release, "Linear", {"Linear.forward": sources[0]} if sources else {}, "0", "2026-01-02")


NEAREST = {
    # the release and source that are asked about: the record that they are compared with
    ("0.20.0", "a"): "0.18.0",
    ("0.19.0", "b"): "0.19.0",
    ("0.30.0", "c"): "0.21.0",
    ("0.19.5", "new"): "0.19.0",
    ("0.17.0", "new"): "0.18.0",
    ("0.17.0", "c"): "0.21.0",
}


@pytest.mark.parametrize("case", NEAREST, ids=str)
def test_the_record_that_a_finding_is_compared_with(case, monkeypatch):
    release, source = case
    entries = (record("0.18.0", "a"), record("0.19.0", "b"), record("0.20.0"), record("0.21.0", "c"))
    monkeypatch.setattr(ReaderFinding, "source", property(lambda self: record(release, source).source))
    found = ReaderRecords(entries).nearest(ReaderFinding(release, "Linear"))
    assert found.release == NEAREST[case]
    assert ReaderRecords().nearest(ReaderFinding(release, "Linear")) is None


def test_records_are_the_same_when_they_are_read_again(known, changed, tmp_path):
    records = recorded(changed, known)
    assert [one.release for one in records.entries] == ["0.90.0"] * len(READERS) + ["0.91.0"] * len(READERS)
    records.save(tmp_path / "records.jsonl")
    assert ReaderRecords.load(tmp_path / "records.jsonl") == records
    again = records.with_findings(findings_in(known), "2027-01-01")
    assert again == records, "what says the same keeps its date"


def test_a_layer_that_a_release_lacks_is_recorded_as_nothing(tmp_path):
    text = "class ParamWrapper(nn.Module, LoraLayer):"
    release = peft_release(tmp_path, "0.92.0", {LAYER: (text, text.replace("Wrapper", "Wrapped"))})
    found = finding(release, "ParamWrapper")
    assert (found.pieces, found.source, found.reason) == ({}, "", "")
    assert recorded(release).of("0.92.0", "ParamWrapper").sources == {}


def test_a_file_that_is_no_python_is_one_readers_reason(tmp_path):
    release = peft_release(tmp_path, "0.92.0")
    (tmp_path / "peft/tuners/lora/bnb.py").write_text("class\n")
    reasons = {one.reader: one.reason for one in findings_in(release) if one.reason}
    assert set(reasons) == {"Linear4bit", "Linear8bitLt"}
    assert all("bnb.py:1: the source does not parse" in reason for reason in reasons.values())


@pytest.mark.parametrize("line", ["[]", "{}", "no JSON", '{"release": "x", "reader": "a", "sources": {}}'])
def test_a_damaged_line_is_named(line, tmp_path):
    (tmp_path / "records.jsonl").write_text(f"{line}\n")
    with pytest.raises(CacheError, match=r"records\.jsonl:1 is damaged: "):
        ReaderRecords.load(tmp_path / "records.jsonl")


def test_the_records_that_ship_are_of_every_release_and_reader():
    records = ReaderRecords.load(SHIPPED_PEFT_RECORDS)
    assert [str(release) for release in records.releases()] == list(PEFT_RELEASES)
    assert {(one.release, one.reader) for one in records.entries} == {
        (release, reader) for release in PEFT_RELEASES for reader in READERS
    }
