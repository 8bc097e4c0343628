"""Projections of one input in one call.

``q, k, v = self.apply_qkv(x)`` is put before the first of the calls, and the names where the calls stood. That moves
all but the first up, so nothing in between may be able to see it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import libcst as cst

from patchkit.rewrite.edits import Edits, in_parentheses_of
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall
from patchkit.rewrite.passed_over import passed_over
from patchkit.rewrite.straight_line import (
    Obstacle,
    place_of,
    statements,
    unpacks_late,
    why_not_movable,
    why_not_private,
)


def why_not_together(
    method: ParsedMethod, names: Collection[str], calls: Sequence[ProjectionCall], *, within_calls: bool
) -> Obstacle | None:
    """Why calls of projections cannot be put together, or None if they can.

    Args:
        method: the method.
        names: attribute names of the projections.
        calls: every call of them, at least one, in the order of evaluation.
        within_calls: whether calls that stand around the last of them, and so are made after it, are no obstacles.
    """
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
    afterwards = set(method.ancestors(calls[-1].node)) if within_calls else set()
    value = first.argument.value
    return why_not_private(method, value) or _why_not_straight(method, calls, value, afterwards)


def _why_not_straight(
    method: ParsedMethod, calls: Sequence[ProjectionCall], value: str, afterwards: Collection[cst.CSTNode]
) -> Obstacle | None:
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
    return why_not_movable(method, window, {call.node for call in calls}, value, afterwards)


def put_together(
    method: ParsedMethod, calls: Sequence[ProjectionCall], code: str, variables: Mapping[str, str], edits: Edits
) -> tuple[str, ...]:
    """Put one statement before calls that :func:`why_not_together` has nothing against, and variables in their places.

    Args:
        method: the method.
        calls: in the order of evaluation.
        code: the statement, without its end of line.
        variables: that it binds, by the name of the projection.
        edits: what is to be done.

    Returns:
        What the calls are moved past, see :func:`patchkit.rewrite.passed_over.passed_over`.
    """
    places = [place for call in calls if (place := place_of(method, call.node))]
    place, last = places[0], places[-1]
    window = statements(place.suite)[place.index : last.index + 1]
    line = cst.ensure_type(cst.parse_statement(code), cst.SimpleStatementLine)
    edits.insert[place.statement] = line.body[0]
    for call in calls:
        edits.replace[call.node] = partial(in_parentheses_of, cst.Name(variables[call.name]))
    return passed_over(method, window, {call.node for call in calls})
