"""Rules for projections: q/k/v of one input in one call, the output projection, and any projection alone.

The examples are bodies of ``forward(self, x, y)``; the tests run them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import libcst as cst

from patchkit.arch.spec import Attention, Part
from patchkit.rewrite.edits import Edits, in_parentheses_of
from patchkit.rewrite.parsed_method import APPLY_LINEAR, APPLY_O, APPLY_QKV, ParsedMethod, ProjectionCall
from patchkit.rewrite.passed_over import passed_over
from patchkit.rewrite.sites import Site, Skip
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
    ("return self.o_proj(self.attend(x, y))", "return self.apply_o(self.attend(x, y))"),
)
"""Bodies before and after."""

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
"""Bodies in which q/k/v cannot be put together, and part of the reason. The calls are rewritten alone."""

_NAMES = (("q", "k", "v"), ("query", "key", "value"))


def plan_qkv(method: ParsedMethod, block: Attention, edits: Edits) -> None:
    """Rule ``qkv-together``, and ``call-alone`` for q, k and v where it does not hold.

    Together: ``q, k, v = self.apply_qkv(x)`` is put before the first of the three calls, and the names where the calls
    stood. That moves two calls up, so nothing in between may be able to see it.
    """
    calls = method.calls_of(block.q, block.k, block.v)
    if not calls:
        edits.skips.append(Skip("qkv", f"absent: {_or(method, (block.q, block.k, block.v))} is never called"))
        return
    obstacle = _why_not_together(method, block, calls)
    if obstacle is None:
        _put_together(method, block, calls, edits)
    else:
        edits.skips.append(Skip("qkv", f"not together: {obstacle.text}", obstacle.line))
        plan_alone(method, "qkv", calls, edits)


def plan_output(method: ParsedMethod, block: Attention, edits: Edits) -> None:
    """Rule ``output-call``: every ``self.o_proj(x)`` becomes ``self.apply_o(x)``."""
    calls = method.calls_of(block.o)
    if not calls:
        edits.skips.append(Skip("o", f"absent: {_or(method, (block.o,))} is never called"))
    for call in _rewritable(method, "o", calls, edits):
        edits.replace[call.node] = partial(_as_output, method)
        edits.sites.append(Site("o", "output-call", method.line(call.node), (call.name,)))


def plan_alone(method: ParsedMethod, name: Part, calls: Iterable[ProjectionCall], edits: Edits) -> None:
    """Rule ``call-alone``: ``self.k_proj(x)`` becomes ``self.apply_linear(self.k_proj, x)``, where it stands."""
    for call in _rewritable(method, name, calls, edits):
        edits.replace[call.node] = partial(_as_linear, method)
        edits.sites.append(Site(name, "call-alone", method.line(call.node), (call.name,)))


def _as_output(method: ParsedMethod, node: cst.Call) -> cst.Call:
    return node.with_changes(func=_attribute(method, APPLY_O))


def _as_linear(method: ParsedMethod, node: cst.Call) -> cst.Call:
    projection = cst.Arg(node.func, comma=cst.Comma(whitespace_after=cst.SimpleWhitespace(" ")))
    return node.with_changes(func=_attribute(method, APPLY_LINEAR), args=[projection, *node.args])


def _rewritable(
    method: ParsedMethod, name: Part, calls: Iterable[ProjectionCall], edits: Edits
) -> Iterable[ProjectionCall]:
    """The calls that can be rewritten where they stand; the others are reported."""
    for call in calls:
        if why := why_not_rewritable(method, call):
            edits.skips.append(Skip(name, why, method.line(call.node)))
        else:
            yield call


def why_not_rewritable(method: ParsedMethod, call: ProjectionCall) -> str | None:
    """Why a call has to be left as it is, or None."""
    if call.nested:
        # self may be another object there, and the code may run later or elsewhere
        return f"{method.quote(call.node)} stands in a nested function, lambda or class"
    if call.argument is None:
        return f"{method.quote(call.node)} does not take exactly one positional argument"
    return None


def _why_not_together(method: ParsedMethod, block: Attention, calls: tuple[ProjectionCall, ...]) -> Obstacle | None:
    first = calls[0]
    for name in (block.q, block.k, block.v):
        count = sum(call.name == name for call in calls)
        if count != 1:
            how_often = "is not called" if count == 0 else f"is called {count} times"
            return Obstacle(f"{_or(method, (name,))} {how_often}", method.line(first.node))
    for call in calls:
        if why := why_not_rewritable(method, call):
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
            block = place.block
        if place.block is not block:
            text = f"{method.quote(calls[0].node)} and {method.quote(call.node)} stand in different blocks"
            return Obstacle(text, method.line(call.node))
        indices.append(place.index)
    tries = (outer for outer in method.ancestors(block) if isinstance(outer, (cst.Try, cst.TryStar)))
    if outer := next(tries, None):
        return Obstacle("the calls stand in a `try` statement", method.line(outer))
    window = statements(block)[min(indices) : max(indices) + 1]
    return why_not_movable(method, window, {call.node for call in calls}, value)


def _put_together(method: ParsedMethod, block: Attention, calls: tuple[ProjectionCall, ...], edits: Edits) -> None:
    names = dict(zip((block.q, block.k, block.v), _free_names(method), strict=True))
    argument = cst.ensure_type(calls[0].argument, cst.Name).value
    places = [place for call in calls if (place := place_of(method, call.node))]
    place, last = places[0], places[-1]
    window = statements(place.block)[place.index : last.index + 1]
    over = passed_over(method, window, {call.node for call in calls})
    code = f"{', '.join(names.values())} = {method.self_name}.{APPLY_QKV}({argument})"
    line = cst.ensure_type(cst.parse_statement(code), cst.SimpleStatementLine)
    edits.insert[place.statement] = line.body[0]
    for call in calls:
        edits.replace[call.node] = partial(in_parentheses_of, cst.Name(names[call.name]))
    order = tuple(call.name for call in calls)
    edits.sites.append(Site("qkv", "qkv-together", method.line(calls[0].node), order, passed_over=over))


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


def _attribute(method: ParsedMethod, name: str) -> cst.BaseExpression:
    return cst.parse_expression(f"{method.self_name}.{name}")


def _or(method: ParsedMethod, names: Iterable[str]) -> str:
    return " or ".join(f"`{method.self_name}.{name}`" for name in names)
