"""Faults of omission: a call, an assignment or a context that is not made."""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from tools.mutants.operators.operator import NOTHING, Operator, Place

_LOGGING = ("logger.", "log.", "logging.", "console.print", "print(")
"""What only speaks."""


def _drop_call(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """A call whose result nobody takes is not made."""
    if not (isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1 and isinstance(node.body[0], cst.Expr)):
        return
    call = node.body[0].value
    if isinstance(call, cst.Call) and not place.code(call).startswith(_LOGGING):
        yield NOTHING


def _drop_store(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``x.y = z`` or ``x[y] = z`` is not done; what makes an object is left alone."""
    if not (isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1 and isinstance(node.body[0], cst.Assign)):
        return
    targets = node.body[0].targets
    function = place.function(node)
    if function is not None and function.name.value in ("__init__", "__new__"):
        return
    if len(targets) == 1 and isinstance(targets[0].target, (cst.Attribute, cst.Subscript)):
        yield NOTHING


def _drop_context(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``with c:`` is left out; what it holds runs all the same."""
    if isinstance(node, cst.With) and all(item.asname is None for item in node.items):
        yield cst.If(cst.Name("True"), node.body, leading_lines=node.leading_lines)


OPERATORS = (
    Operator("drop call", _drop_call),
    Operator("drop store", _drop_store),
    Operator("drop context", _drop_context),
)
