"""Outcomes as plain data: the status of an architecture, how those of its models are joined, and each field of the line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest

from patchkit.check.numeric.on_the_spot import SPOT_CHECKS
from patchkit.check.numeric.outcomes import (
    NUMERIC_CHECKS,
    ArchitectureOutcome,
    BlockOutcome,
    CheckOutcome,
    Status,
    joined,
)
from patchkit.testing import CHECKS
from patchkit.trust.ledger import Key, Proof

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
NAME, SOURCE = "transformers.models.llama.modeling_llama.LlamaMLP", "a" * 64


def block(
    status: Status = "passed", name: str = NAME, model: str = "llama", levels: Mapping[str, str] | None = None
) -> BlockOutcome:
    """What a worker says of a class that passed, but for one check that is inapplicable; or of one that did not."""
    checks = {one: CheckOutcome("passed", 1e-6) for one in NUMERIC_CHECKS} | {
        "generate": CheckOutcome("inapplicable", None, "no cache")
    }
    levels = levels or {"mlp": "fused"}
    if status != "passed":
        return BlockOutcome(
            name, SOURCE, model, status, levels, checks | {"eval": CheckOutcome("failed", 0.5, "x")}, "eval: x"
        )
    errors = {one: 1e-6 for one, check in checks.items() if check.status == "passed"}
    proof = Proof(Key(name, SOURCE, 1), "numeric", levels, errors, VERSIONS, "2026-01-02")
    return BlockOutcome(name, SOURCE, model, status, levels, checks, "", proof.to_line())


def outcome(*blocks: BlockOutcome, **fields: Any) -> ArchitectureOutcome:
    return ArchitectureOutcome("llama", VERSIONS, blocks, **fields)


PROBLEMS: dict[str, tuple[Mapping[str, str] | None, bool]] = {
    "none": (None, True),
    "empty": ({}, True),
    "one": ({"a": "b"}, False),
}


@pytest.mark.parametrize("problems", PROBLEMS)
def test_the_status_of_an_architecture(problems: str) -> None:
    """Of every two blocks, of one and of none; a class that is not patched at all is no fault."""
    given, fine = PROBLEMS[problems]
    for count in range(3):
        for statuses in itertools.product(get_args(Status), repeat=count):
            found = outcome(*map(block, statuses), problems=given, unpatched={"A": "why"}).status
            expected: Status = "passed" if count and fine and set(statuses) == {"passed"} else "inapplicable"
            assert found == ("failed" if "failed" in statuses else expected), statuses


def test_the_proofs_are_of_what_passed() -> None:
    found = outcome(block(), block("failed"), block("inapplicable"), block(name=f"{NAME}2"))
    assert [proof.key.class_name for proof in found.proofs] == [NAME, f"{NAME}2"]


def test_models_are_joined() -> None:
    """By class and model; times are added, and what is told twice is told once."""
    one = outcome(
        block(model="b"), block(name=f"{NAME}2", model="b"), unpatched={"A": "why"}, problems={"m": "n"}, seconds=1.111
    )
    other = outcome(block(model="a"), unpatched={"B": "why"}, problems=None, seconds=2.222)
    third = ArchitectureOutcome("llama", VERSIONS, (), None, {"o": "p"}, 0.333)
    found = joined([one, other, third])
    assert (found.architecture, found.versions) == ("llama", VERSIONS)
    assert [(shown.class_name, shown.model) for shown in found.blocks] == [(NAME, "a"), (NAME, "b"), (f"{NAME}2", "b")]
    assert (found.unpatched, found.problems) == ({"A": "why", "B": "why"}, {"m": "n", "o": "p"})
    assert found.seconds == 3.67
    assert joined([third, one]).seconds == 1.44


@pytest.mark.parametrize("case", ["passed", "failed", "inapplicable", "nothing", "everything"])
def test_a_line_and_back(case: str) -> None:
    given = {
        "nothing": outcome(),
        "everything": outcome(block(), block("failed"), unpatched={"A": "b"}, problems={"C": "d"}, seconds=1.5),
    }.get(case) or outcome(block(case))  # type: ignore[arg-type]
    line = given.to_json()
    assert "\n" not in line
    assert json.loads(line)["status"] == given.status
    for text in (line, line.encode()):
        assert ArchitectureOutcome.from_json(text) == given


WRONG: dict[str, Any] = {"a number": 1, "a list": [], "nothing": None, "an object": {"a": 1}, "true": True}
TEXTS = ["architecture", "versions", "blocks", "unpatched", "problems", "seconds"]
FINE = {("unpatched", "nothing"), ("problems", "nothing"), ("blocks", "a list"), ("seconds", "a number")}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("field", TEXTS)
def test_each_field_has_its_type(field: str, wrong: str) -> None:
    data = json.loads(outcome(block(), unpatched={}, problems={}).to_json()) | {field: WRONG[wrong]}
    if (field, wrong) in FINE:
        ArchitectureOutcome.from_json(json.dumps(data))
    else:
        with pytest.raises(ValueError, match=r".+"):
            ArchitectureOutcome.from_json(json.dumps(data))


FINE_IN_BLOCKS = {("proof", "nothing")}
FIELDS = ["class_name", "source", "model", "status", "levels", "checks", "reason", "proof"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_a_block_has_its_type(field: str, wrong: str) -> None:
    """Of one that failed, about which nothing else is asked."""
    data = json.loads(outcome(block("failed")).to_json())
    data["blocks"][0][field] = WRONG[wrong]
    if (field, wrong) in FINE_IN_BLOCKS:
        ArchitectureOutcome.from_json(json.dumps(data))
    else:
        with pytest.raises(ValueError, match=r".+"):
            ArchitectureOutcome.from_json(json.dumps(data))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("field", ["status", "error", "reason"])
def test_each_field_of_a_check_has_its_type(field: str, wrong: str) -> None:
    data = json.loads(outcome(block("failed")).to_json())
    data["blocks"][0]["checks"]["eval"][field] = WRONG[wrong]
    if (field, wrong) in {("error", "nothing"), ("error", "a number")}:
        ArchitectureOutcome.from_json(json.dumps(data))
    else:
        with pytest.raises(ValueError, match=r".+"):
            ArchitectureOutcome.from_json(json.dumps(data))


@pytest.mark.parametrize("name", ["LlamaMLP", "a..b", ".a", "a.", "a.1b", "1a.b", "a b.c", "a.b-c", "", "a.b\n"])
def test_a_class_has_a_qualified_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no class, or its checks are none"):
        ArchitectureOutcome.from_json(outcome(block("failed", name=name)).to_json())


CONTRADICTIONS = {
    "a check that failed": (lambda one: {"eval": CheckOutcome("failed", 0.5, "x")}, "its checks are not"),
    "the first one inapplicable": (lambda one: {NUMERIC_CHECKS[0]: CheckOutcome("inapplicable")}, "its checks are not"),
    "another one inapplicable": (lambda one: {NUMERIC_CHECKS[1]: CheckOutcome("inapplicable")}, "is of something else"),
    "one more passed": (lambda one: {"generate": CheckOutcome("passed", 0.0)}, "is of something else"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_pass_has_checks_that_passed(case: str) -> None:
    changes, said = CONTRADICTIONS[case]
    shown = block()
    shown = replace(shown, checks={**shown.checks, **changes(shown)})
    with pytest.raises(ValueError, match=said):
        ArchitectureOutcome.from_json(outcome(shown).to_json())


@pytest.mark.parametrize("levels", [{"mlp": "upstream"}, {"qkv": "upstream", "o": "upstream"}, {}], ids=str)
def test_a_pass_at_upstream_level(levels: dict[str, str]) -> None:
    shown = replace(block(), levels=levels)
    with pytest.raises(ValueError, match="runs at upstream level"):
        ArchitectureOutcome.from_json(outcome(shown).to_json())
    partly = block(levels={"qkv": "upstream", "o": "linear"})
    assert ArchitectureOutcome.from_json(outcome(partly).to_json()).status == "passed"


@pytest.mark.parametrize("error", [0.0, -0.0, -1e-9, -1.0])
def test_no_error_is_below_zero(error: float) -> None:
    shown = block()
    proof = Proof.from_line(shown.proof or "")
    shown = replace(shown, proof=replace(proof, checks={**proof.checks, "eval": error}).to_line())
    if error >= 0:
        assert ArchitectureOutcome.from_json(outcome(shown).to_json()).proofs
    else:
        with pytest.raises(ValueError, match="below zero"):
            ArchitectureOutcome.from_json(outcome(shown).to_json())


CHANGED = {
    "class": {"class_name": f"{NAME}2"}, "source": {"source": "b" * 64},
}  # fmt: skip


@pytest.mark.parametrize("field", [*CHANGED, "stage", "levels", "checks", "versions"])
def test_a_proof_says_what_its_block_says(field: str) -> None:
    shown = block()
    proof = Proof.from_line(shown.proof or "")
    changed = {
        "stage": replace(proof, stage="spot"),
        "levels": replace(proof, levels={"mlp": "linear"}),
        "checks": replace(proof, checks=dict(list(proof.checks.items())[:-1])),
        "versions": replace(proof, versions=VERSIONS | {"torch": "9.0"}),
    }.get(field) or replace(proof, key=proof.key._replace(**CHANGED[field]))
    with pytest.raises(ValueError, match=r"of something else|with other versions"):
        ArchitectureOutcome.from_json(outcome(replace(shown, proof=changed.to_line())).to_json())


@pytest.mark.parametrize("status", get_args(Status))
@pytest.mark.parametrize("proven", [True, False])
def test_who_has_a_proof(status: Status, proven: bool) -> None:
    shown = replace(block(status), proof=block().proof if proven else None)
    if proven == (status == "passed"):
        assert ArchitectureOutcome.from_json(outcome(shown).to_json()).blocks == (shown,)
    else:
        with pytest.raises(ValueError, match=f"is {status}, {'with' if proven else 'without'} a proof"):
            ArchitectureOutcome.from_json(outcome(shown).to_json())


def test_the_checks_of_both_stages() -> None:
    """What a class can break, of all checks that there are; that on the spot is a part of it and begins as it does."""
    assert set(NUMERIC_CHECKS) <= set(CHECKS)
    assert len(set(NUMERIC_CHECKS)) == len(NUMERIC_CHECKS) == 16
    assert [name for name in NUMERIC_CHECKS if name in SPOT_CHECKS] == list(SPOT_CHECKS)
    assert NUMERIC_CHECKS[0] == SPOT_CHECKS[0] == "forward_backward"
    assert len(SPOT_CHECKS) == 8
