"""What another run found of PEFT is taken only where it is the very text that patchkit would have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from patchkit.adapters import peft_known
from patchkit.adapters.peft_known import SHIPPED_PROOFS, ReaderProof, add_reader_proofs, shipped_proofs
from patchkit.adapters.peft_sources import READERS
from patchkit.check.results.peft_proposal import PEFT_PROOFS, PEFT_RECORDS, read_peft_proposal
from patchkit.check.static import peft_layers, records
from patchkit.check.static.peft_layers import SHIPPED_PEFT_RECORDS, ReaderRecords
from patchkit.cli.main import app
from patchkit.errors import ProposalError

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0", "peft": "0.91.0", "python": "3.11.7"}
NEW = "0.91.0"


@pytest.fixture
def ours() -> ReaderRecords:
    return ReaderRecords.load(SHIPPED_PEFT_RECORDS)


def next_release(ours: ReaderRecords, release: str = NEW) -> ReaderRecords:
    """The newest release once more under another number, in which ``Linear.forward`` is another."""
    newest = str(ours.releases()[-1])
    found = []
    for reader in READERS:
        record = ours.of(newest, reader)
        assert record is not None
        sources = dict(record.sources)
        if reader == "Linear":
            sources["Linear.forward"] = "c" * 64
        found.append((release, reader, sources))
    return ours.with_sources(found, "2026-12-01")


@pytest.fixture
def proposed(tmp_path: Path, ours: ReaderRecords) -> Path:
    """What an honest run leaves: one release with one other text, which is proven."""
    folder = tmp_path / "proposal"
    folder.mkdir()
    there = next_release(ours)
    there.save(folder / PEFT_RECORDS)
    record = there.of(NEW, "Linear")
    assert record is not None
    (folder / PEFT_PROOFS).write_bytes(SHIPPED_PROOFS.read_bytes())
    proof = ReaderProof("Linear", record.source, {"LoRA, DoRA: eval": 1e-7}, VERSIONS, "2026-12-01")
    add_reader_proofs([proof], folder / PEFT_PROOFS)
    for lock in folder.glob("*.lock"):
        lock.unlink()
    (folder / "watch.log").write_text("new of PEFT: 0.91.0\n```\n@everyone\x1b[31m\n")
    return folder


def read(folder: Path, ours: ReaderRecords, *releases: str):
    return read_peft_proposal(folder, ours, shipped_proofs(SHIPPED_PROOFS), releases)


def test_what_an_honest_run_found_is_taken(proposed: Path, ours: ReaderRecords) -> None:
    found = read(proposed, ours, NEW)
    assert [(one.release, one.reader) for one in found.records] == [(NEW, reader) for reader in READERS]
    assert [(proof.reader, proof.versions["peft"]) for proof in found.proofs] == [("Linear", NEW)]
    assert found.newest == NEW
    assert found.log.startswith("new of PEFT")


def test_what_ships_is_what_patchkit_would_have_written(tmp_path: Path) -> None:
    """Every line that is committed passes: the checks refuse nothing that honest runs write."""
    (tmp_path / PEFT_RECORDS).write_bytes(SHIPPED_PEFT_RECORDS.read_bytes())
    (tmp_path / PEFT_PROOFS).write_bytes(SHIPPED_PROOFS.read_bytes())
    (tmp_path / "watch.log").touch()
    found = read_peft_proposal(tmp_path, ReaderRecords(), {})
    assert len(found.records) == len(ReaderRecords.load(SHIPPED_PEFT_RECORDS).entries)
    assert {(one.reader, one.source): one for one in found.proofs} == shipped_proofs(SHIPPED_PROOFS)


def test_nothing_new_is_nothing(proposed: Path, ours: ReaderRecords) -> None:
    ours.save(proposed / PEFT_RECORDS)
    (proposed / f"{PEFT_RECORDS}.lock").unlink(missing_ok=True)
    (proposed / PEFT_PROOFS).write_bytes(SHIPPED_PROOFS.read_bytes())
    found = read(proposed, ours)
    assert (found.records, found.proofs, found.newest) == ((), (), "")


def lines(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text("utf-8").splitlines()


def rewrite(name: str, chosen: Callable[[dict[str, Any]], bool], **changes: Any) -> Callable[[Path], None]:
    """Change fields of the lines that are chosen; every other line stays as it is."""

    def change(folder: Path) -> None:
        found = [(json.loads(line), line) for line in lines(folder, name)]
        assert any(chosen(data) for data, _ in found)
        ordered = name == PEFT_PROOFS
        said = [json.dumps({**data, **changes}, sort_keys=ordered) if chosen(data) else line for data, line in found]
        (folder / name).write_text("".join(f"{line}\n" for line in said))

    return change


def of_new(data: dict[str, Any]) -> bool:
    return data["release"] == NEW and data["reader"] == "Linear"


def of_old(data: dict[str, Any]) -> bool:
    return data["release"] == "0.20.0" and data["reader"] == "Linear"


def made_new(data: dict[str, Any]) -> bool:
    return data["versions"]["peft"] == NEW


def made_before(data: dict[str, Any]) -> bool:
    return data["reader"] == "Linear4bit"


def record(**changes: Any) -> Callable[[Path], None]:
    return rewrite(PEFT_RECORDS, of_new, **changes)


def proof(**changes: Any) -> Callable[[Path], None]:
    return rewrite(PEFT_PROOFS, made_new, **changes)


def without(name: str, chosen: Callable[[dict[str, Any]], bool]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        kept = [line for line in lines(folder, name) if not chosen(json.loads(line))]
        assert len(kept) < len(lines(folder, name))
        (folder / name).write_text("".join(f"{line}\n" for line in kept))

    return change


def twice(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + lines(folder, name)[-1] + "\n")


def spaced(name: str, chosen: Callable[[dict[str, Any]], bool]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = [f" {line}" if chosen(json.loads(line)) else line for line in lines(folder, name)]
        (folder / name).write_text("".join(f"{line}\n" for line in said))

    return change


FORWARD = {"Linear.forward": "c" * 64}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another file": (lambda folder: (folder / "conftest.py").touch(), "expected ['peft_proofs.jsonl'"),
    "a missing file": (lambda folder: (folder / PEFT_PROOFS).unlink(), "expected ['peft_proofs.jsonl'"),
    "a link": (
        lambda folder: ((folder / "watch.log").unlink(), (folder / "watch.log").symlink_to("/etc/passwd")),
        "watch.log is no ordinary file",
    ),
    "no UTF-8": (lambda folder: (folder / PEFT_RECORDS).write_bytes(b"\xff"), "cannot be read"),
    "no JSON": (lambda folder: (folder / PEFT_RECORDS).write_text("{"), "peft_records.jsonl:1 is no record"),
    "deep JSON": (lambda folder: (folder / PEFT_RECORDS).write_text("[" * 100_000), "peft_records.jsonl:1 is no record"),
    "a list": (lambda folder: (folder / PEFT_PROOFS).write_text("[]"), "peft_proofs.jsonl:1 is no proof"),
    "a record of ours is missing": (without(PEFT_RECORDS, of_old), "lacks Linear of 0.20.0, which is recorded"),
    "a record of ours is another": (
        rewrite(PEFT_RECORDS, of_old, sources=FORWARD), "has otherwise Linear of 0.20.0, which is recorded",
    ),
    "a layer of the new release is missing": (without(PEFT_RECORDS, of_new), "has no line of Linear of 0.91.0"),
    "a record twice": (twice(PEFT_RECORDS), "it stands there twice"),
    "a record in another form": (spaced(PEFT_RECORDS, of_new), "it is not written as patchkit writes it"),
    "another field": (record(note="hello"), "it is not written as patchkit writes it"),
    "a release in another form": (record(release="0.91"), "has no line of "),
    "no release": (record(release="x|y"), "is no record"),
    "a pre-release": (record(release="0.92.0rc1"), "its release is a pre-release"),
    "no reader": (record(reader="<b>"), "its reader is none"),
    "no function": (record(sources={"Linear.other": "c" * 64}), "its functions are not those of its reader"),
    "functions in another order": (
        record(sources={"Linear.merged": "c" * 64, **FORWARD}), "its functions are not those of its reader",
    ),
    "a layer without forward": (record(sources={"Linear.merged": "c" * 64}), "it lacks Linear.forward"),
    "no hash": (record(sources={"Linear.forward": "C" * 64}), "a hash is none"),
    "a hash and a line": (record(sources={"Linear.forward": "c" * 64 + "\n"}), "a hash is none"),
    "a proof of ours is missing": (without(PEFT_PROOFS, made_before), "lacks a proof of Linear4bit"),
    "a proof of ours is another": (
        rewrite(PEFT_PROOFS, made_before, date="2026-12-02"), "it is recorded, and otherwise",
    ),
    "a proof of a text that is not new": (proof(source="d" * 64), "it is of no text of a new release"),
    "a proof twice": (twice(PEFT_PROOFS), "it stands there twice"),
    "a proof in another form": (spaced(PEFT_PROOFS, made_new), "it is not written as patchkit writes it"),
    "a proof with another field": (proof(note="hello"), "it is not written as patchkit writes it"),
    "a proof of nothing": (proof(checks={}), "it proves nothing"),
    "a large error": (proof(checks={"LoRA: eval": 1.1e-5}), "an error is not within 0 and 1e-05"),
    "an error below none": (proof(checks={"LoRA: eval": -1e-9}), "an error is not within"),
    "an infinite error": (proof(checks={"LoRA: eval": float("inf")}), "it proves nothing"),
    "a check that is no name": (proof(checks={"<b>": 0.0}), "its checks are none"),
    "a date": (proof(date="today"), "its reader, hash or date is none"),
    "no versions": (proof(versions={"peft": NEW}), "its versions are none"),
    "a version that is none": (proof(versions=VERSIONS | {"torch": "x|y"}), "its versions are none"),
    "more versions": (proof(versions=VERSIONS | {"numpy": "1.0"}), "its versions are none"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, proposed: Path, ours: ReaderRecords) -> None:
    change, why = REFUSED[kind]
    change(proposed)
    with pytest.raises(ProposalError) as raised:
        read(proposed, ours)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_proof_was_made_with_a_release_that_is_taken(proposed: Path, ours: ReaderRecords) -> None:
    rewrite(PEFT_PROOFS, made_new, versions=VERSIONS | {"peft": "0.21.2"})(proposed)
    with pytest.raises(ProposalError, match=r"it was made with PEFT 0\.21\.2, which is not new; nothing is taken; run"):
        read(proposed, ours)


@pytest.mark.parametrize("asked", [("0.92.0",), ("0.20.0",)])
def test_only_the_releases_that_were_asked_for_are_taken(
    asked: tuple[str, ...], proposed: Path, ours: ReaderRecords
) -> None:
    with pytest.raises(ProposalError, match=rf"peft_records.jsonl has 0\.91\.0, and {asked[0]} was asked for"):
        read(proposed, ours, *asked)
    assert read(proposed, ours, *asked, "0.91").newest == NEW


def test_a_recorded_release_gets_no_other_layer(proposed: Path, ours: ReaderRecords) -> None:
    """One of ours that lacks a layer is not filled up by another run."""
    fewer = ReaderRecords(tuple(one for one in ours.entries if (one.release, one.reader) != ("0.20.0", "Linear")))
    with pytest.raises(ProposalError, match="more lines of a recorded release than are recorded"):
        read(proposed, fewer)


def test_the_command(proposed: Path, ours: ReaderRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(peft_layers, "SHIPPED_PEFT_RECORDS", tmp_path / PEFT_RECORDS)
    monkeypatch.setattr(peft_known, "SHIPPED_PROOFS", tmp_path / PEFT_PROOFS)
    before = records.SHIPPED_RECORDS.read_bytes()
    (tmp_path / PEFT_PROOFS).write_bytes(SHIPPED_PROOFS.read_bytes())
    ours.save(tmp_path / PEFT_RECORDS)
    arguments = ["adopt", "--peft", str(proposed), "-o", str(tmp_path / "m.md"), "--body", str(tmp_path / "body.md")]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (0, f"{NEW}\n"), result.output
    assert "| 0.91.0 | 0.21.2 |" in (tmp_path / "m.md").read_text()
    assert "* **0.91.0** Linear: Linear.forward" in (tmp_path / "m.md").read_text()
    assert len(shipped_proofs(tmp_path / PEFT_PROOFS)) == len(shipped_proofs(SHIPPED_PROOFS)) + 1
    taken = ReaderRecords.load(tmp_path / PEFT_RECORDS)
    assert {one.date for one in taken.entries if one.release == NEW} != {"2026-12-01"}, "the date is made anew"
    assert "1 new proofs." in (tmp_path / "body.md").read_text()
    assert CliRunner().invoke(app, arguments).stdout == "", "nothing is new now"
    (proposed / "more").touch()
    there = {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()} == there
    assert records.SHIPPED_RECORDS.read_bytes() == before, "nothing of transformers was taken"
