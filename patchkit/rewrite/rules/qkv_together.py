"""Query, key and value of one input in one call: :mod:`patchkit.rewrite.together` has the code and its conditions."""

from __future__ import annotations

from typing import Any

import libcst as cst

from patchkit.arch.spec import Block, Part
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site
from patchkit.rewrite.together import put_together, why_not_together

VALID = (
    (
        "return self.q_proj(x).view(s), self.k_norm(self.k_proj(x)), self.v_proj(x)",
        "q, k, v = self.apply_qkv(x)\nreturn q.view(s), self.k_norm(k), v",
    ),
    (
        "v = self.v_proj(x)\nq = self.q_proj(x)\nk = self.k_proj(x)",
        "query, key, value = self.apply_qkv(x)\nv = value\nq = query\nk = key",
    ),
)

INVALID = (
    ("a = self.q_proj(x), self.k_proj(y), self.v_proj(y)", "`self.k_proj(y)` takes another input than"),
    ("a = self.q_proj(x)\nif y:\n    b = self.k_proj(x), self.v_proj(x)", "stand in different blocks"),
    ("a = self.q_proj(x)\nx = x + 1\nb = self.k_proj(x), self.v_proj(x)", "`x` is bound again in between"),
    ("a = self.q_proj(x), self.k_proj(x)\nb = self.dropout(y)\nc = self.v_proj(x)", "may draw random numbers"),
    ("a = self.q_proj(x), self.k_proj(x), (self.v_proj(x) if y else None)", "is evaluated conditionally"),
    ("a = f(self.q_proj(x), key=self.k_proj(x), *self.v_proj(x))", "is evaluated after what `*` unpacks behind it"),
    ("a = self.q_proj(x), self.k_proj(x)", "`self.v_proj` is not called"),
    ("a = self.q_proj(x), self.k_proj(x), self.v_proj(x), self.v_proj(x)", "`self.v_proj` is called 2 times"),
    ("a = self.q_proj(x + 1), self.k_proj(x), self.v_proj(x)", "the input of `self.q_proj(x + 1)` is not a variable"),
    ("a = self.q_proj(x, 1), self.k_proj(x), self.v_proj(x)", "does not take exactly one positional argument"),
)

_NAMES = (("q", "k", "v"), ("query", "key", "value"))


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    names = block.projections(part)
    calls = edits.untaken(method.calls_of(*names))
    # Proofs are of the text that this leaves where a call stands around all three.
    obstacle = why_not_together(method, names, calls, within_calls=False)
    if obstacle is None:
        _put_together(method, names, part, calls, edits)
    else:
        edits.leave(calls, part, f"not together: {obstacle.text}", obstacle.line)


def _put_together(
    method: ParsedMethod, names: tuple[str, ...], part: Part, calls: tuple[ProjectionCall, ...], edits: Edits
) -> None:
    variables = dict(zip(names, _free_names(method), strict=True))
    argument = cst.ensure_type(calls[0].argument, cst.Name).value
    code = f"{', '.join(variables.values())} = {method.self_name}.{RULE.method}({argument})"
    over = put_together(method, calls, code, variables, edits)
    order = tuple(call.name for call in calls)
    edits.take(calls, Site(part, RULE.name, method.line(calls[0].node), order, passed_over=over))


def _free_names(method: ParsedMethod) -> tuple[str, str, str]:
    """Names for query, key and value that occur nowhere in the method, not as a global or in a nested function."""
    used = {name.value for name in method.names}
    suffix, number = "", 1
    while True:
        for q, k, v in _NAMES:
            if used.isdisjoint((q + suffix, k + suffix, v + suffix)):
                return q + suffix, k + suffix, v + suffix
        number += 1
        suffix = f"_{number}"


def _arguments(block: Block, site: Site) -> dict[str, Any]:
    return {"names": block.projections("qkv"), "order": site.calls}


RULE = Rule(
    name="qkv-together",
    parts=("qkv",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method="apply_qkv",
    arguments=_arguments,
)
