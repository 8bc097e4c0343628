"""A projection alone: ``self.k_proj(x)`` becomes ``self.apply_linear(self.k_proj, x)``, where it stands.

It is for what no rule can put together. An output projection is never part of more, so it has a rule of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import libcst as cst

from patchkit.arch.spec import Block, Part
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.single_calls import single_calls
from patchkit.rewrite.sites import Site

VALID = (
    (
        "return self.q_proj(x), self.k_proj(y)",
        "return self.apply_linear(self.q_proj, x), self.apply_linear(self.k_proj, y)",
    ),
    (
        "q = self.q_proj(x)\nif y:\n    k = self.k_proj(x)",
        "q = self.apply_linear(self.q_proj, x)\nif y:\n    k = self.apply_linear(self.k_proj, x)",
    ),
    (
        "return self.q_proj(self.k_proj(x) + y)",
        "return self.apply_linear(self.q_proj, self.apply_linear(self.k_proj, x) + y)",
    ),
)

INVALID = (
    ("return self.q_proj(x, y)", "`self.q_proj(x, y)` does not take exactly one positional argument"),
    ("return self.k_proj(input=x)", "`self.k_proj(input=x)` does not take exactly one positional argument"),
    ("return map(lambda x: self.v_proj(x), y)", "`self.v_proj(x)` stands in a nested function, lambda or class"),
)


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    for call in single_calls(method, block, part, edits):
        edits.replace[call.node] = partial(_as_linear, method)
        edits.take([call], Site(part, RULE.name, method.line(call.node), (call.name,)))


def _as_linear(method: ParsedMethod, node: cst.Call) -> cst.Call:
    projection = cst.Arg(node.func, comma=cst.Comma(whitespace_after=cst.SimpleWhitespace(" ")))
    return node.with_changes(func=method.attribute_of_self(RULE.method), args=[projection, *node.args])


def _arguments(block: Block, site: Site) -> dict[str, Any]:
    return {}


RULE = Rule(
    name="call-alone",
    parts=("qkv", "mlp"),
    whole=False,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method="apply_linear",
    arguments=_arguments,
)
