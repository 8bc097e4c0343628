"""The examples that the rule modules carry are true."""

from __future__ import annotations

import textwrap

import pytest

from patchkit.arch.spec import Attention, GatedMLP
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules import gated_mlp, projections

BLOCKS = {projections: Attention("Block"), gated_mlp: GatedMLP("Block")}


def in_class(body: str) -> str:
    return f"class Block:\n    def forward(self, x, y):\n{textwrap.indent(body, ' ' * 8)}\n"


@pytest.mark.parametrize(("module", "before", "after"), [(m, *pair) for m in BLOCKS for pair in m.VALID])
def test_valid(module, before: str, after: str) -> None:
    assert rewrite(in_class(before), BLOCKS[module]).source == in_class(after)


@pytest.mark.parametrize(("module", "body", "reason"), [(m, *pair) for m in BLOCKS for pair in m.INVALID])
def test_invalid(module, body: str, reason: str) -> None:
    rewritten = rewrite(in_class(body), BLOCKS[module])
    assert {site.rule for site in rewritten.sites} <= {"call-alone"}
    assert any(reason in skip.reason for skip in rewritten.skips), rewritten.skips
