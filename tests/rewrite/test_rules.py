"""The table of rules: one file each, in the order in which they are tried, with methods that the runtime makes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import libcst as cst
import pytest

import patchkit.rewrite.rules
from patchkit.arch.spec import MLP, Attention, GatedMLP, LanguageModel, Part, SharedInput
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.parsed_method import ProjectionCall
from patchkit.rewrite.rules.registry import rule_named, rules, rules_of
from patchkit.rewrite.sites import Site
from patchkit.runtime.methods import METHODS


def test_a_file_holds_one_rule_of_its_name() -> None:
    (folder,) = patchkit.rewrite.rules.__path__
    files = {path.stem for path in Path(folder).glob("*.py")} - {"__init__", "registry", "rule"}
    assert {rule.name.replace("-", "_") for rule in rules()} == files
    assert len(rules()) == len(files)


def test_whole_rules_come_first() -> None:
    assert [rule.name for rule in rules()] == [
        "gated-mlp",
        "loss-of-logits",
        "output-call",
        "qkv-together",
        "shared-input",
        "ungated-mlp",
        "call-alone",
    ]
    assert [rule.name for rule in rules_of("qkv")] == ["qkv-together", "call-alone"]
    assert [rule.name for rule in rules_of("o")] == ["output-call"]
    assert [rule.name for rule in rules_of("loss")] == ["loss-of-logits"]
    assert [rule.name for rule in rules_of("mlp")] == ["gated-mlp", "ungated-mlp", "call-alone"]
    assert [rule.name for rule in rules_of("mlp", GatedMLP("Block"))] == ["gated-mlp", "call-alone"]
    assert [rule.name for rule in rules_of("mlp", MLP("Block"))] == ["ungated-mlp", "call-alone"]
    assert [rule.name for rule in rules_of("linear", SharedInput("Block"))] == ["shared-input"]


@pytest.mark.parametrize("part", get_args(Part))
def test_a_whole_rule_for_every_part_of_a_block(part: Part) -> None:
    blocks = (Attention("Block"), GatedMLP("Block"), SharedInput("Block"), LanguageModel("Block"))
    held = any(part in block.parts for block in blocks)
    assert any(rule.whole for rule in rules_of(part)) == held


def test_a_rule_is_found_by_its_name() -> None:
    assert all(rule_named(rule.name) is rule for rule in rules())
    with pytest.raises(KeyError, match="no such rule"):
        rule_named("no such rule")


def test_the_runtime_makes_every_method_that_a_rule_calls() -> None:
    assert {rule.maker or rule.method for rule in rules()} == set(METHODS)


def test_a_reason_is_forgotten_when_all_that_it_is_about_is_taken_and_in_no_other_case() -> None:
    first, second = (ProjectionCall("o_proj", cst.Call(cst.Name("f")), None, False) for _ in range(2))
    edits = Edits()
    edits.leave([first], "o", "of the first", 1)
    edits.leave([first, second], "o", "of both", 2)
    edits.leave([first], "qkv", "of another part", 3)
    edits.leave([], "o", "of no call")
    edits.take([first], Site("o", "output-call", 1, ("o_proj",)))
    assert edits.untaken([first, second]) == (second,)
    edits.forget_reasons_of_taken("o")
    assert [(skip.reason, skip.line) for skip in edits.skips] == [
        ("of both", 2),
        ("of another part", 3),
        ("of no call", None),
    ]
