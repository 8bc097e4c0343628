"""Query, key and value of one input in one call.

``q, k, v = self.apply_qkv(x)`` is put before the first of the three calls, and the names where the calls stood. That
moves two calls up, so nothing in between may be able to see it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import libcst as cst

from patchkit.arch.spec import Block, Part
from patchkit.rewrite.edits import Edits, in_parentheses_of
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall
from patchkit.rewrite.passed_over import passed_over
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site
from patchkit.rewrite.straight_line import (
    Obstacle,
    place_of,
    statements,
    unpacks_late,
    why_not_movable,
    why_not_private,
)

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
    obstacle = _why_not_together(method, names, calls)
    if obstacle is None:
        _put_together(method, names, part, calls, edits)
    else:
        edits.leave(calls, part, f"not together: {obstacle.text}", obstacle.line)


def _why_not_together(
    method: ParsedMethod, names: tuple[str, ...], calls: tuple[ProjectionCall, ...]
) -> Obstacle | None:
    first = calls[0]
    for name in names:
        count = sum(call.name == name for call in calls)
        if count != 1:
            how_often = "is not called" if count == 0 else f"is called {count} times"
            return Obstacle(f"{method.quote_of_self(name)} {how_often}", method.line(first.node))
    for call in calls:
        if why := method.why_not_rewritable(call):
            return Obstacle(why, method.line(call.node))
    if not isinstance(first.argument, cst.Name):
        return Obstacle(f"the input of {method.quote(first.node)} is not a variable", method.line(first.node))
    for call in calls:
        if not (isinstance(call.argument, cst.Name) and call.argument.value == first.argument.value):
            text = f"{method.quote(call.node)} takes another input than {method.quote(first.node)}"
            return Obstacle(text, method.line(call.node))
    return why_not_private(method, first.argument.value) or _why_not_straight(method, calls, first.argument.value)


def _why_not_straight(method: ParsedMethod, calls: tuple[ProjectionCall, ...], value: str) -> Obstacle | None:
    indices: list[int] = []
    for call in calls:
        place = place_of(method, call.node)
        if place is None:
            how = "conditionally, or in the header of a statement"
            if any(unpacks_late(outer) for outer in method.ancestors(call.node)):
                how = "after what `*` unpacks behind it"
            return Obstacle(f"{method.quote(call.node)} is evaluated {how}", method.line(call.node))
        if not indices:
            suite = place.suite
        if place.suite is not suite:
            text = f"{method.quote(calls[0].node)} and {method.quote(call.node)} stand in different blocks"
            return Obstacle(text, method.line(call.node))
        indices.append(place.index)
    tries = (outer for outer in method.ancestors(suite) if isinstance(outer, (cst.Try, cst.TryStar)))
    if outer := next(tries, None):
        return Obstacle("the calls stand in a `try` statement", method.line(outer))
    window = statements(suite)[min(indices) : max(indices) + 1]
    return why_not_movable(method, window, {call.node for call in calls}, value)


def _put_together(
    method: ParsedMethod, names: tuple[str, ...], part: Part, calls: tuple[ProjectionCall, ...], edits: Edits
) -> None:
    variables = dict(zip(names, _free_names(method), strict=True))
    argument = cst.ensure_type(calls[0].argument, cst.Name).value
    places = [place for call in calls if (place := place_of(method, call.node))]
    place, last = places[0], places[-1]
    window = statements(place.suite)[place.index : last.index + 1]
    over = passed_over(method, window, {call.node for call in calls})
    code = f"{', '.join(variables.values())} = {method.self_name}.{RULE.method}({argument})"
    line = cst.ensure_type(cst.parse_statement(code), cst.SimpleStatementLine)
    edits.insert[place.statement] = line.body[0]
    for call in calls:
        edits.replace[call.node] = partial(in_parentheses_of, cst.Name(variables[call.name]))
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
