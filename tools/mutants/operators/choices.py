"""Faults in what runs: a guard that is gone, one branch for both, a reason that is not given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import libcst as cst

from tools.mutants.operators.operator import NOTHING, Operator, Place, compares_with_none, in_place_of

_LEAVING = (cst.Return, cst.Continue, cst.Break, cst.Raise)


def _drop_guard(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``if c: return r`` (continue, break, raise) is gone."""
    if not isinstance(node, cst.If) or node.orelse is not None or isinstance(place.parent(node), cst.If):
        return
    body: Sequence[cst.CSTNode] = node.body.body
    if len(body) == 1 and isinstance(body[0], cst.SimpleStatementLine):
        body = body[0].body
    if len(body) == 1 and isinstance(body[0], _LEAVING):
        yield NOTHING


def _one_branch(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``a if c else b`` is always a, or always b; where None is told apart, that would only fail."""
    if isinstance(node, cst.IfExp) and not compares_with_none(node.test):
        yield in_place_of(node.body, node)
        yield in_place_of(node.orelse, node)


def _no_reason(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``return None`` where a function that may return None returns something."""
    if not isinstance(node, cst.Return) or node.value is None:
        return
    if isinstance(node.value, cst.Name) and node.value.value == "None":
        return
    function = place.function(node)
    if function is None or function.returns is None:
        return
    annotation = place.code(function.returns.annotation)
    if annotation.startswith(("str | None", "Reason | None")) or annotation.endswith("| None"):
        yield node.with_changes(value=cst.Name("None"), whitespace_after_return=cst.SimpleWhitespace(" "))


def _stop_early(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``break`` for ``continue``, and the other way round."""
    if isinstance(node, cst.Continue):
        yield cst.Break()
    if isinstance(node, cst.Break):
        yield cst.Continue()


OPERATORS = (
    Operator("drop guard", _drop_guard),
    Operator("one branch", _one_branch),
    Operator("no reason", _no_reason),
    Operator("break or continue", _stop_early),
)
