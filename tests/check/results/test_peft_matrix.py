"""The matrix of PEFT's layers: a cell is proven by its very text, and what changed is named."""

from __future__ import annotations

from patchkit.adapters.peft_known import ReaderProof
from patchkit.adapters.peft_sources import READERS
from patchkit.check.results.peft_matrix import LAYERS, PEFT_SYMBOLS, PeftMatrix, peft_section
from patchkit.check.static.peft_layers import ReaderRecord, ReaderRecords

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0", "peft": "0.20.0", "python": "3.11.7"}


def record(release, reader, **sources):
    return ReaderRecord(release, reader, sources, "0", "2026-01-02")


OLD, NEW = record("0.19.0", "Linear", a="1", b="2"), record("0.20.0", "Linear", a="1", b="3", c="4")
EMPTY = record("0.20.0", "ParamWrapper")
RECORDS = ReaderRecords((OLD, record("0.19.0", "ParamWrapper", a="1"), NEW, EMPTY))


def matrix(*proven):
    made = [ReaderProof(one.reader, one.source, {"LoRA: eval": 1e-15}, VERSIONS, "2026-02-03") for one in proven]
    return PeftMatrix(RECORDS, {(one.reader, one.source): one for one in made})


def row(text, reader):
    (found,) = [line for line in text if line.startswith(f"| {reader} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_every_reader_has_a_row_and_a_meaning():
    assert set(LAYERS) == set(READERS)
    text = list(peft_section(matrix()))
    assert all(row(text, reader)[1] == LAYERS[reader] for reader in READERS)


def test_a_cell_is_proven_by_its_very_text():
    """The newest release stands first."""
    assert row(list(peft_section(matrix())), "Linear")[2:] == ["○", "○"]
    assert row(list(peft_section(matrix(OLD))), "Linear")[2:] == ["○", "●"]
    assert row(list(peft_section(matrix(NEW, OLD))), "Linear")[2:] == ["●", "●"]
    assert row(list(peft_section(matrix())), "ParamWrapper")[2:] == ["–", "○"]
    assert row(list(peft_section(matrix())), "Embedding")[2:] == ["", ""], "nothing is recorded"


def test_what_the_proofs_were_made_with_is_said_of_those_that_count():
    other = ReaderProof("Linear", "0" * 64, {"x": 0.0}, VERSIONS | {"torch": "9.9"}, "2029-01-01")
    proofs = {**matrix(OLD).proofs, ("Linear", other.source): other}
    text = "\n".join(peft_section(PeftMatrix(RECORDS, proofs)))
    assert "Numeric stage of 2026-02-03: 1 texts, with transformers 5.23.0, torch 2.13.0." in text
    assert "9.9" not in text


def test_what_changed_in_each_release():
    text = list(peft_section(matrix()))
    assert text[-2:] == ["* **0.20.0** Linear: b, c; ParamWrapper: a", "* **0.19.0** the first recorded"]


def test_without_records_there_is_no_section():
    assert list(peft_section(PeftMatrix(ReaderRecords(), {}))) == []


def test_the_symbols_are_three():
    assert len(set(PEFT_SYMBOLS.values())) == 3
