"""What is recorded of versions of torch: counts of what ran, and the section that shows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome, CheckOutcome
from patchkit.check.results.torch_records import (
    SHIPPED_TORCH_RECORDS,
    TORCH_HEADINGS,
    TorchRecord,
    TorchRecords,
    torch_rows,
    torch_section,
)
from patchkit.errors import CacheError, ReleaseEnvironmentError

VERSIONS = {"transformers": "5.23.0", "torch": "2.14.0+cpu", "peft": "0.21.2", "python": "3.11.7"}


def outcome(name, *statuses, status="passed", problems=None, versions=VERSIONS):
    checks = {str(number): CheckOutcome(one) for number, one in enumerate(statuses)}
    block = BlockOutcome(f"a.{name}", "0" * 64, name, status, {"mlp": "fused"}, checks)
    return ArchitectureOutcome(name, versions, (block,), problems=problems)


FINE = outcome("gemma", "passed", "passed", "inapplicable")
WRONG = outcome("llama", "passed", "failed", status="failed")


def test_every_check_is_counted():
    record = TorchRecord.of("2.14", [FINE, WRONG], "2026-12-01")
    assert (record.passed, record.failed, record.inapplicable, record.checks) == (3, 1, 1, 5)
    assert (record.torch, record.architectures, record.unproven) == ("2.14.0", 2, ("llama",))
    assert record.versions == VERSIONS


def test_a_model_that_could_not_be_run_is_a_failure():
    lost = replace(FINE, problems={"gemma": "its process died"})
    record = TorchRecord.of("2.14.0", [lost, ArchitectureOutcome("acme", VERSIONS, problems={"acme": "x"})], "d")
    assert (record.passed, record.failed, record.unproven) == (2, 2, ("acme", "gemma"))


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        [outcome("gemma", "passed", versions=VERSIONS | {"torch": "2.13.0"})],
        [FINE, outcome("llama", "passed", versions=VERSIONS | {"peft": "0.20.0"})],
    ],
    ids=["none", "another torch", "several"],
)
def test_what_ran_with_another_torch_is_not_recorded(outcomes):
    with pytest.raises(
        ReleaseEnvironmentError, match=r"were to run with torch 2\.14\.0, but ran with .*--torch 2\.14\.0`"
    ):
        TorchRecord.of("2.14.0", outcomes, "2026-12-01")


RECORD = TorchRecord.of("2.14.0", [FINE, WRONG], "2026-12-01")


def test_there_and_back(tmp_path: Path) -> None:
    older = replace(RECORD, torch="2.9.1")
    records = TorchRecords().with_record(RECORD).with_record(older).with_record(replace(RECORD, date="2026-12-02"))
    records.save(tmp_path / "torch.jsonl")
    assert TorchRecords.load(tmp_path / "torch.jsonl") == records
    assert [str(one) for one in records.releases()] == ["2.9.1", "2.14.0"], "as versions, and each once"
    assert records.entries[-1].date == "2026-12-02", "the last run counts"
    assert TorchRecords.load(tmp_path / "none").entries == ()


DAMAGED = {
    "no JSON": "{",
    "a list": "[]",
    "no version": json.dumps(json.loads(RECORD.to_line()) | {"torch": "x|y"}),
    "a count below none": json.dumps(json.loads(RECORD.to_line()) | {"failed": -1}),
    "more unproven than there are": json.dumps(json.loads(RECORD.to_line()) | {"unproven": ["a", "b", "c"]}),
    "versions of something else": json.dumps(json.loads(RECORD.to_line()) | {"versions": {"torch": "2.14.0"}}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "torch.jsonl").write_text(f"{RECORD.to_line()}\n{DAMAGED[kind]}\n")
    with pytest.raises(CacheError, match=r"torch\.jsonl:2 is damaged: .*; restore the file, or delete the line$"):
        TorchRecords.load(tmp_path / "torch.jsonl")


def test_the_section_says_what_failed():
    text = list(torch_section(TorchRecords((replace(RECORD, torch="2.9.1", unproven=(), failed=0), RECORD))))
    assert text[1] == "## torch"
    rows = [line for line in text if line.startswith("| 2.")]
    assert rows == [
        "| 2.14.0 | 1 of 2 | 3 | 1 | 1 | transformers 5.23.0, PEFT 0.21.2, Python 3.11.7 | 2026-12-01 |",
        "| 2.9.1 | 2 of 2 | 3 | 0 | 1 | transformers 5.23.0, PEFT 0.21.2, Python 3.11.7 | 2026-12-01 |",
    ]
    assert all(line.count("|") == len(TORCH_HEADINGS) + 1 for line in text if line.startswith("|"))
    assert text[-1] == "torch 2.14.0, not proven equal: llama."


def test_a_name_is_no_markup():
    (row,) = torch_rows(TorchRecords((replace(RECORD, versions=VERSIONS | {"peft": "0.1|<b>"}),)))
    assert "0.1|<b>" in row[5]
    shown = "\n".join(torch_section(TorchRecords((replace(RECORD, versions=VERSIONS | {"peft": "0.1|<b>"}),))))
    assert "<b>" not in shown


def test_without_records_there_is_no_section():
    assert list(torch_section(TorchRecords())) == []


def test_what_ships_was_run_and_holds():
    records = TorchRecords.load(SHIPPED_TORCH_RECORDS)
    assert records.entries
    for one in records.entries:
        assert one.architectures > 10
        assert one.passed > 16 * one.architectures / 2
        assert (one.failed == 0) == (not one.unproven)
