"""Faults in arithmetic: off by one, a factor or a term that is missing, a flag the other way round."""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from tools.mutants.operators.operator import NOTHING, Operator, Place, called_name, in_place_of

_TEXT = (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString, cst.List, cst.Tuple, cst.ListComp, cst.Dict)

_HARMLESS_FLAGS = frozenset(
    {"strict", "repr", "compare", "slots", "frozen", "kw_only", "highlight", "markup", "sort_keys", "indent"}
)
"""Keywords whose other value changes nothing that a test should ask about."""


def _off_by_one(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``x[1]`` for ``x[0]``, ``x[-2]`` for ``x[-1]``, ``x[2:]`` for ``x[1:]``, ``range(n - 1)`` for ``range(n)``."""
    parent = place.parent(node)
    if isinstance(parent, (cst.Index, cst.Slice)):
        if isinstance(node, cst.Integer):
            yield cst.Integer(str(int(node.value, 0) + 1))
        if isinstance(node, cst.UnaryOperation) and isinstance(node.expression, cst.Integer):
            yield node.with_changes(expression=cst.Integer(str(int(node.expression.value, 0) + 1)))
    if isinstance(node, cst.Call) and called_name(node) == "range" and len(node.args) == 1:
        end = cst.BinaryOperation(
            node.args[0].value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]),
            cst.Subtract(),
            cst.Integer("1"),
        )
        yield node.with_changes(args=[cst.Arg(end)])


def _factor(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """A product without each of its factors; a quotient without its divisor."""
    if not isinstance(node, cst.BinaryOperation) or isinstance(node.left, _TEXT) or isinstance(node.right, _TEXT):
        return
    if isinstance(node.operator, cst.Multiply):
        yield in_place_of(node.left, node)
        yield in_place_of(node.right, node)
    elif isinstance(node.operator, (cst.Divide, cst.FloorDivide, cst.Power)):
        yield in_place_of(node.left, node)


def _term(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """A sum without each of its terms; a difference without what is taken off."""
    if not isinstance(node, cst.BinaryOperation) or isinstance(node.left, _TEXT) or isinstance(node.right, _TEXT):
        return
    if isinstance(node.operator, (cst.Add, cst.Subtract)):
        yield in_place_of(node.left, node)
    if isinstance(node.operator, cst.Add):
        yield in_place_of(node.right, node)


def _update(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``x += y`` is gone."""
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1 and isinstance(node.body[0], cst.AugAssign):
        yield NOTHING


def _extremum(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``min`` for ``max``, and the other way round."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in ("min", "max"):
        yield node.with_changes(func=cst.Name("min" if node.func.value == "max" else "max"))


def _flag(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``True`` for ``False``, and the other way round, in an argument, a default or what is returned."""
    if not (isinstance(node, cst.Name) and node.value in ("True", "False")):
        return
    parent = place.parent(node)
    if isinstance(parent, cst.Arg) and parent.keyword is not None and parent.keyword.value in _HARMLESS_FLAGS:
        return
    if isinstance(parent, (cst.Arg, cst.Return)) or (isinstance(parent, cst.Param) and parent.default is node):
        yield cst.Name("False" if node.value == "True" else "True")


OPERATORS = (
    Operator("off by one", _off_by_one),
    Operator("drop factor", _factor),
    Operator("drop term", _term),
    Operator("drop update", _update),
    Operator("min or max", _extremum),
    Operator("flip flag", _flag),
)
