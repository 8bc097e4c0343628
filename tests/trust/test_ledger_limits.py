"""Each field of a line, each limit of a file, and which of two proofs of one thing stays, in either order."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchkit.errors import CacheError, PatchkitWarning
from patchkit.trust import ledger
from patchkit.trust.ledger import Key, Proof, add_proofs, find_proof, read_proofs, user_ledger

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

VERSIONS = {"torch": "2.13.0", "peft": "0.21.2"}
PROOF = Proof(
    Key("m.C", "a" * 64, 1), "numeric", {"mlp": "fused"}, {"eval": 1e-7, "dropout": 0.5}, VERSIONS, "2026-01-05"
)


# ---- which of two stays


BEST_FIRST = [
    replace(PROOF, checks={"a": 1.0, "b": 1.0, "c": 1.0}, date="2026-02-01"),
    replace(PROOF, date="2026-01-01", versions={"torch": "9"}),
    replace(PROOF, date="2026-01-02", versions={"peft": "1", "torch": "9"}),
    replace(PROOF, date="2026-01-02", versions={"peft": "2", "torch": "1"}),
    replace(PROOF, checks={"a": 1.0}, date="2025-01-01"),
    replace(PROOF, stage="spot", checks=dict.fromkeys("abcdef", 1.0), date="2024-01-01"),
    replace(PROOF, stage="spot", date="2023-01-01"),
    replace(PROOF, stage="spot", date="2023-01-02"),
]  # fmt: skip


@pytest.mark.parametrize(("better", "worse"), list(itertools.combinations(range(len(BEST_FIRST)), 2)))
def test_of_every_two_the_better_stays(better: int, worse: int) -> None:
    """The numeric stage first, then more checks, then the older one, then by versions."""
    kept, other = BEST_FIRST[better], BEST_FIRST[worse]
    assert ledger._better(kept, other) is kept
    assert ledger._better(other, kept) is kept


@pytest.mark.parametrize(
    "changes", [{"levels": {"mlp": "linear"}}, {"checks": {"eval": 1e-3, "dropout": 0.1}}], ids=str
)
def test_of_equals_the_first_stays(changes: dict[str, Any]) -> None:
    other = replace(PROOF, **changes)
    assert ledger._better(PROOF, other) is PROOF
    assert ledger._better(other, PROOF) is other
    assert ledger._better(None, other) is other


def test_the_order_of_versions_counts_for_nothing() -> None:
    other = replace(PROOF, versions=dict(reversed(VERSIONS.items())))
    assert ledger._better(PROOF, other) is PROOF
    assert ledger._better(other, PROOF) is other


# ---- a line


def test_a_line_says_each_field() -> None:
    data = json.loads(PROOF.to_line())
    assert data == {
        "class": "m.C", "source": "a" * 64, "rewrite": 1, "stage": "numeric", "levels": {"mlp": "fused"},
        "checks": {"eval": 1e-7, "dropout": 0.5}, "versions": VERSIONS, "date": "2026-01-05",
    }  # fmt: skip
    assert list(data) == sorted(data)


@pytest.mark.parametrize("outside", ["", "b" * 64])
@pytest.mark.parametrize("description", ["", "GatedMLP(gate='w1')"])
def test_what_only_some_keys_have(outside: str, description: str) -> None:
    proof = replace(PROOF, key=PROOF.key._replace(outside=outside, description=description))
    data = json.loads(proof.to_line())
    assert (data.get("outside", ""), data.get("description", "")) == (outside, description)
    assert ("outside" in data, "description" in data) == (bool(outside), bool(description))
    assert Proof.from_line(proof.to_line()) == proof


@pytest.mark.parametrize(("error", "written"), [
    (1.2345e-7, 1.2e-7), (0.0, 0.0), (1.25, 1.2), (1.06, 1.1), (123.4, 120.0), (1, 1.0), (9.96e-6, 1e-5),
])  # fmt: skip
def test_errors_have_two_digits(error: float, written: float) -> None:
    found = Proof.from_line(replace(PROOF, checks={"eval": error}).to_line())
    assert found.checks == {"eval": written}


VALUES: dict[str, Any] = {
    "nothing": None, "true": True, "a number": 1, "a fraction": 1.5, "text": "x", "no text": "", "a list": [], "an object": {},
    "an object of numbers": {"a": 1}, "an object of texts": {"a": "b"}, "an object of booleans": {"a": True},
    "an object of nothing": {"a": None}, "two, of which one is text": {"a": 1.0, "b": "c"}, "two, of which one is a number": {"a": "b", "c": 1},
    "a hash": "0" * 64, "a shorter hash": "0" * 63, "a longer hash": "0" * 65, "a hash in capitals": "A" * 64, "no hash": "g" * 64,
    "a hash and a line end": "0" * 64 + "\n", "numeric": "numeric", "spot": "spot",
}  # fmt: skip
TEXT = {name for name, value in VALUES.items() if isinstance(value, str)}
GOOD = {
    "class": TEXT,
    "source": {"a hash"},
    "rewrite": {"a number"},
    "stage": {"numeric", "spot"},
    "levels": {"an object", "an object of texts"},
    "checks": {"an object of numbers"},
    "versions": {"an object", "an object of texts"},
    "date": TEXT,
    "outside": {"no text", "a hash"},
    "description": TEXT,
}


@pytest.mark.parametrize("field", GOOD)
def test_each_field_has_its_values(field: str) -> None:
    """Everything else is an error that says what is wrong, and no exception of another kind."""
    data = json.loads(PROOF.to_line())
    for name, value in VALUES.items():
        line = json.dumps(data | {field: value})
        if name in GOOD[field]:
            Proof.from_line(line)
        else:
            with pytest.raises(ValueError, match=r"is no text|is none|are none|does not map names to|is no JSON"):
                Proof.from_line(line)
    del_line = json.dumps({key: value for key, value in data.items() if key != field})
    if field in ("outside", "description"):
        assert Proof.from_line(del_line) == PROOF
    else:
        with pytest.raises(ValueError, match=f"it lacks '{field}'"):
            Proof.from_line(del_line)


@pytest.mark.parametrize(("error", "fine"), [
    ("1e308", True), ("-1.0", True), ("0", True), ("NaN", False), ("Infinity", False), ("-Infinity", False), ("1e999", False),
    ("1" + "0" * 308, True), ("1" + "0" * 309, False),
])  # fmt: skip
def test_errors_are_finite(error: str, fine: bool) -> None:
    line = json.dumps(json.loads(PROOF.to_line()) | {"checks": {"a": 1.0, "eval": "?"}}).replace('"?"', error)
    if fine:
        assert set(Proof.from_line(line).checks) == {"a", "eval"}
    else:
        with pytest.raises(ValueError, match="not finite"):
            Proof.from_line(line)


# ---- a file


BLANKS = ["", " ", "\t", "\r", "  \r", "\u2003", "\f", " \t "]


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
def test_blank_lines_are_nothing(blank: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "ledger.jsonl"
    other = replace(PROOF, key=PROOF.key._replace(class_name="m.D"))
    path.write_text(
        f"{blank}\n{PROOF.to_line()}\n{blank}\n{blank}\n{other.to_line()}\r\n{blank}", encoding="utf-8", newline=""
    )
    assert read_proofs(path) == {PROOF.key: PROOF, other.key: other}
    assert not recwarn.list


@pytest.mark.parametrize(("wrong", "said"), [
    ([2], r"1 damaged lines, which are ignored \(line 2: [^;]*\)$"),
    ([2, 4], r"2 damaged lines, which are ignored \(line 2: .*; and 1 more\)$"),
    ([1, 3, 4], r"3 damaged lines, which are ignored \(line 1: .*; and 2 more\)$"),
])  # fmt: skip
def test_how_many_lines_are_damaged(wrong: list[int], said: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = [
        "{" if number in wrong else replace(PROOF, key=PROOF.key._replace(class_name=f"m.C{number}")).to_line()
        for number in range(1, 6)
    ]
    path.write_text("\n".join(lines))
    with pytest.warns(PatchkitWarning, match=said):
        found = read_proofs(path)
    assert {int(key.class_name[-1]) for key in found} == set(range(1, 6)) - set(wrong)


def test_a_proof_that_stands_there_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for order in (BEST_FIRST, BEST_FIRST[::-1]):
        path.write_text("".join(f"{proof.to_line()}\n" for proof in order))
        assert read_proofs(path) == {PROOF.key: BEST_FIRST[0]}
        add_proofs(path, order)
        assert path.read_text() == f"{BEST_FIRST[0].to_line()}\n"


CHANGES: dict[str, Callable[[Path, os.stat_result], None]] = {
    "another time": lambda path, before: os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1)),
    "another size": lambda path, before: (
        path.write_text(path.read_text() + "\n"),
        os.utime(path, ns=(0, before.st_mtime_ns)),
    ),  # type: ignore[dict-item]
    "another file": lambda path, before: (
        path.with_name("new").write_text(path.read_text()),
        os.utime(path.with_name("new"), ns=(0, before.st_mtime_ns)),
        path.with_name("new").replace(path),
    ),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_a_file_is_read_again_only_when_it_changed(
    change: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    add_proofs(path, [PROOF])
    first = read_proofs(path)
    read: list[str] = []
    parse = ledger._parse
    monkeypatch.setattr(ledger, "_parse", lambda text, place: read.append(text) or parse(text, place))
    if change is not None:
        CHANGES[change](path, path.stat())
    assert read_proofs(path) == first
    assert len(read) == (change is not None)


@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3, 4])
def test_how_many_are_kept(limit: int | None, tmp_path: Path) -> None:
    """The newest; what stands there counts as what is added. The file is sorted by class all the same."""
    path = tmp_path / "ledger.jsonl"
    proofs = [
        replace(PROOF, key=PROOF.key._replace(class_name=f"m.C{day}"), date=f"2026-01-0{9 - day}")
        for day in range(1, 4)
    ]
    add_proofs(path, proofs[1:2])
    add_proofs(path, [proofs[2], proofs[0]], limit=limit)
    expected = proofs if limit is None else proofs[:limit]
    assert path.read_text() == "".join(f"{proof.to_line()}\n" for proof in expected)


def test_the_shipped_ledger_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, users = replace(PROOF, date="2026-01-09"), replace(PROOF, date="2026-01-01")
    more = replace(PROOF, key=PROOF.key._replace(class_name="m.D"))
    monkeypatch.setattr(ledger, "SHIPPED_LEDGER", tmp_path / "shipped.jsonl")
    add_proofs(tmp_path / "shipped.jsonl", [shipped])
    add_proofs(user_ledger(), [users, more])
    assert find_proof(PROOF.key) == shipped
    assert find_proof(more.key) == more
    for changed in (
        {"source": "b" * 64},
        {"rewrite": 2},
        {"outside": "b" * 64},
        {"description": "x"},
        {"class_name": "m.E"},
    ):
        assert find_proof(PROOF.key._replace(**changed)) is None

    def homeless() -> Path:
        raise CacheError("there is no home")

    monkeypatch.setattr(ledger, "user_ledger", homeless)
    assert find_proof(PROOF.key) == shipped
    assert find_proof(more.key) is None


@pytest.mark.skipif(os.name == "nt", reason="a profile is its user's alone")
def test_only_the_shipped_ledger_may_be_anybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as trusted as the code beside it; the user's own must not be writable by others."""
    path = tmp_path / "ledger.jsonl"
    add_proofs(path, [PROOF])
    tmp_path.chmod(0o755)
    path.chmod(0o666)
    with pytest.warns(PatchkitWarning, match="cannot be believed or read"):
        assert read_proofs(path) == {}
    monkeypatch.setattr(ledger, "SHIPPED_LEDGER", path)
    assert read_proofs(path) == {PROOF.key: PROOF}
