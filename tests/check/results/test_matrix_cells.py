"""What a cell, a total and a change show, from records made by hand: each verdict, alone and beside every other one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import pytest

from patchkit.check.results.matrix import MEANINGS, SYMBOLS, Matrix, changes, make_matrix, to_markdown
from patchkit.check.static.findings import Finding
from patchkit.check.static.records import Record, Records
from patchkit.check.static.verdicts import PartOutcome, Verdict
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust.ledger import Key, Proof

WORST_LAST: tuple[Verdict, ...] = ("rewritten", "rewritten differently", "partial", "unmatched", "drifted")


def record(
    verdict: Verdict, name: str = "LlamaMLP", part: str = "mlp", release: str = "5.1.0", **fields: object
) -> Record:
    source = fields.pop("source", name.encode().hex().ljust(64, "0")[:64])
    finding = Finding(
        release, "llama", "LlamaMLP", name, f"m.{name}", "m.py", 3, str(source), {part: PartOutcome(("x",))}
    )  # type: ignore[dict-item]
    finding = replace(finding, **{key: value for key, value in fields.items() if key != "date"})  # type: ignore[arg-type]
    return Record(finding, {part: verdict}, REWRITE_VERSION, "1.2", str(fields.get("date", "2026-01-02")))  # type: ignore[dict-item]


def proofs_of(*records: Record, **versions: str) -> dict[Key, Proof]:
    made = {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.1.0", "python": "3.11.7"} | versions
    return {one.key: Proof(one.key, "numeric", {}, {"eval": 1e-7}, made, "2026-02-03") for one in records}


def cell(records: list[Record], proofs: Mapping[Key, Proof] = {}) -> str:
    return str(make_matrix(Records(records), proofs).rows["llama"][0])


def test_each_verdict_has_a_symbol_and_a_meaning() -> None:
    assert set(SYMBOLS) == set(MEANINGS) == set(get_args(Verdict))
    assert tuple(SYMBOLS) == (*WORST_LAST, "absent")
    for verdict in WORST_LAST:
        one = record(verdict)
        assert (cell([one], proofs_of(one)), cell([one])) == SYMBOLS[verdict]
    assert cell([record("absent")]) == "–"


@pytest.mark.parametrize(("better", "worse"), list(itertools.combinations(range(len(WORST_LAST)), 2)))
def test_of_two_classes_the_worse_is_shown(better: int, worse: int) -> None:
    """Proven only if both are; one that is absent counts for nothing."""
    first, second = record(WORST_LAST[better], "A"), record(WORST_LAST[worse], "B")
    proven, static = SYMBOLS[WORST_LAST[worse]]
    absent = record("absent", "C")
    for given in ([first, second], [second, first], [absent, first, second]):
        assert cell(given) == cell(given, proofs_of(first)) == cell(given, proofs_of(second)) == static
        assert cell(given, proofs_of(first, second)) == proven


def test_parts_stand_in_one_order() -> None:
    """q/k/v, o, MLP, whatever of them there is; one that is absent beside others is shown."""
    parts = {"mlp": record("rewritten"), "o": record("partial", "A", "o"), "qkv": record("drifted", "B", "qkv")}
    for chosen in itertools.chain.from_iterable(itertools.permutations(parts, count) for count in (1, 2, 3)):
        expected = "".join({"mlp": "○", "o": "◇", "qkv": "✗"}[part] for part in ("qkv", "o", "mlp") if part in chosen)
        assert cell([parts[part] for part in chosen]) == expected
    assert cell([parts["mlp"], record("absent", "A", "o")]) == "–○"
    assert cell([record("absent"), record("absent", "A", "o")]) == "–"


def test_an_architecture_without_blocks_shows_its_text_models() -> None:
    llava = replace(record("rewritten").finding, architecture="llava", parts={}, block="", class_name="", source="")
    for line, expected in ((1, "✗"), (0, "–")):
        one = Record(replace(llava, line=line), {}, REWRITE_VERSION, "1.2", "2026-01-02")
        matrix = make_matrix(Records([record("drifted"), one]), {})
        assert [str(shown) for shown in matrix.rows["llava"]] == [expected]
    gone = Record(replace(llava, architecture="gone"), {}, REWRITE_VERSION, "1.2", "2026-01-02")
    assert str(make_matrix(Records([gone]), {}).rows["gone"][0]) == "–"


def page(matrix: Matrix) -> list[str]:
    return to_markdown(matrix).splitlines()


def test_totals() -> None:
    """Of all releases, and of the newest."""
    records = [
        record("rewritten", release="5.1.0"), record("partial", "A", "o", release="5.1.0"),
        record("rewritten differently", release="5.2.0"), record("drifted", "A", "o", release="5.2.0"), record("unmatched", "B", "qkv", release="5.2.0"),
        record("absent", release="5.3.0"),
    ]  # fmt: skip
    for count, last in (
        (6, "| 5.3.0 | 0 | 0 | 0 | 0 | 0 | 0 |"),
        (5, "| 5.2.0 | 1 | 3 | 1 | 1 | 0 | 2 |"),
        (2, "| 5.1.0 | 1 | 2 | 1 | 1 | 1 | 0 |"),
    ):
        lines = page(make_matrix(Records(records[:count]), proofs_of(*records)))
        start = lines.index("## Totals")
        shown = {6: "2 | 5 | 2 | 2 | 1 | 2", 5: "2 | 5 | 2 | 2 | 1 | 2", 2: "1 | 2 | 1 | 1 | 1 | 0"}[count]
        assert lines[start + 4 : start + 6] == [f"| all releases | {shown} |", last]
    lines = page(make_matrix(Records(records), {}))
    assert "| all releases | 2 | 5 | 2 | 0 | 1 | 2 |" in lines


def test_the_header() -> None:
    one, other = record("rewritten", date="2026-01-05"), record("rewritten", release="5.2.0", date="2026-01-02")
    (first, second) = page(
        make_matrix(Records([one, other]), {**proofs_of(one), **proofs_of(record("rewritten", "Z"), torch="1.0")})
    )[3:5]
    assert "transformers 5.1.0 to 5.2.0, each read as its wheel; static stage of 2026-01-02 to 2026-01-05" in first
    assert first.endswith(f"patchkit 1.2, rewriter {REWRITE_VERSION}.")
    assert second.startswith("Numeric stage of 2026-02-03: 1 classes, with torch 2.13.0, PEFT 0.21.2.")
    alone = page(make_matrix(Records([one]), {}))
    assert "static stage of 2026-01-05, patchkit" in alone[3]
    assert not [line for line in alone if line.startswith("Numeric stage")]
    assert page(make_matrix(Records([]), {}))[3] == "Nothing is recorded."


def test_versions_are_sorted_as_versions() -> None:
    one, other = record("rewritten"), record("rewritten", "A")
    lines = page(
        make_matrix(
            Records([one, other]),
            proofs_of(one, torch="2.9.0", peft="0.9.0") | proofs_of(other, torch="2.13.0", peft="0.21.0"),
        )
    )
    assert "2 classes, with torch 2.9.0, 2.13.0, PEFT 0.9.0, 0.21.0." in lines[4]


A, B = "a" * 64, "b" * 64
CHANGES = {
    # the second release after one with LlamaMLP as it is: what is said
    "nothing": ([record("rewritten", source=A)], "nothing"),
    "another source": ([record("rewritten", source=B)], "changed, same rule: LlamaMLP"),
    "partly": ([record("partial", source=B)], "changed, same rule: LlamaMLP"),
    "drifted": ([record("drifted", source=B)], "drifted: LlamaMLP"),
    "drifted, and the same source": ([record("drifted", source=A)], "nothing"),
    "new": (
        [record("rewritten", source=A), record("rewritten", "LlamaB"), record("rewritten", "LlamaA")],
        "new: LlamaA, LlamaB",
    ),
    "gone": ([], "gone: LlamaMLP"),
    "gone, and there without a source": ([record("absent", source="")], "gone: LlamaMLP"),
    "gone and new": ([record("rewritten", "Other")], "gone: LlamaMLP; new: Other (llama)"),
    "two ways": ([record("drifted", source=B), record("rewritten", "LlamaA")], "drifted: LlamaMLP; new: LlamaA"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_changed_at_a_release(case: str) -> None:
    second, said = CHANGES[case]
    later = [replace(one, finding=replace(one.finding, release="5.2.0")) for one in second]
    marker = record("rewritten", "LlamaAlways", source=A, architecture="llama")
    same = replace(marker, finding=replace(marker.finding, release="5.2.0"))
    lines = list(changes(make_matrix(Records([record("rewritten", source=A), marker, *later, same]), {})))
    assert lines == ["* **5.1.0** the first recorded", f"* **5.2.0** {said}"]
