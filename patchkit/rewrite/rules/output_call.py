"""The output projection: ``self.o_proj(x)`` becomes ``self.apply_o(x)``, wherever it stands."""

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
    ("return self.o_proj(self.attend(x, y))", "return self.apply_o(self.attend(x, y))"),
    (
        "if y:\n    return self.o_proj(x)\nreturn self.o_proj(x + 1)",
        "if y:\n    return self.apply_o(x)\nreturn self.apply_o(x + 1)",
    ),
)

INVALID = (
    ("return self.o_proj(x, y)", "does not take exactly one positional argument"),
    ("return self.o_proj(*x)", "does not take exactly one positional argument"),
    ("return map(lambda x: self.o_proj(x), y)", "stands in a nested function, lambda or class"),
)


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    for call in single_calls(method, block, part, edits):
        edits.replace[call.node] = partial(_as_output, method)
        edits.take([call], Site(part, RULE.name, method.line(call.node), (call.name,)))


def _as_output(method: ParsedMethod, node: cst.Call) -> cst.Call:
    return node.with_changes(func=method.attribute_of_self(RULE.method))


def _arguments(block: Block, site: Site) -> dict[str, Any]:
    (output,) = block.projections("o")
    return {"o": output}


RULE = Rule(
    name="output-call",
    parts=("o",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method="apply_o",
    arguments=_arguments,
)
