"""The examples that the rules carry are true."""

from __future__ import annotations

import textwrap

import pytest

from patchkit.arch.spec import MLP, Attention, Block, GatedMLP, LanguageModel, SharedInput
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules.registry import rule_named, rules
from patchkit.rewrite.rules.rule import Rule

BLOCKS: tuple[Block, ...] = (
    Attention("Block"),
    GatedMLP("Block"),
    MLP("Block"),
    SharedInput("Block"),
    LanguageModel("Block"),
)


def block_of(rule: Rule) -> Block:
    return next(block for block in BLOCKS if isinstance(block, rule.blocks) and set(rule.parts) & set(block.parts))


def in_class(body: str) -> str:
    return f"class Block:\n    def forward(self, x, y):\n{textwrap.indent(body, ' ' * 8)}\n"


def examples(kind: str) -> list:
    return [pytest.param(rule, *pair, id=f"{rule.name}-{pair[0]}") for rule in rules() for pair in getattr(rule, kind)]


@pytest.mark.parametrize(("rule", "before", "after"), examples("valid"))
def test_valid(rule: Rule, before: str, after: str) -> None:
    rewritten = rewrite(in_class(before), block_of(rule))
    assert rewritten.source == in_class(after)
    assert {site.rule for site in rewritten.sites} == {rule.name}


@pytest.mark.parametrize(("rule", "body", "reason"), examples("invalid"))
def test_invalid(rule: Rule, body: str, reason: str) -> None:
    rewritten = rewrite(in_class(body), block_of(rule))
    assert rule.name not in {site.rule for site in rewritten.sites}
    assert not any(rule_named(site.rule).whole for site in rewritten.sites)
    assert any(reason in skip.reason for skip in rewritten.skips), rewritten.skips


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_every_rule_has_examples_of_both_kinds(rule: Rule) -> None:
    assert rule.valid
    assert rule.invalid
