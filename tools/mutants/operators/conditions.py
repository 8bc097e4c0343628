"""Faults in conditions: a part that is not asked, a comparison the other way round, a boundary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import libcst as cst

from tools.mutants.operators.operator import Operator, Place, compares_with_none, in_place_of

_OPPOSITE: dict[type[cst.BaseCompOp], cst.BaseCompOp] = {
    cst.Equal: cst.NotEqual(),
    cst.NotEqual: cst.Equal(),
    cst.In: cst.NotIn(),
    cst.NotIn: cst.In(),
    cst.Is: cst.IsNot(),
    cst.IsNot: cst.Is(),
}

_BOUNDARY: dict[type[cst.BaseCompOp], cst.BaseCompOp] = {
    cst.LessThan: cst.LessThanEqual(),
    cst.LessThanEqual: cst.LessThan(),
    cst.GreaterThan: cst.GreaterThanEqual(),
    cst.GreaterThanEqual: cst.GreaterThan(),
}


def _drop_condition(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``a and b and c`` without each of its parts in turn; ``or`` likewise."""
    if not isinstance(node, cst.BooleanOperation):
        return
    outer = place.parent(node)
    if isinstance(outer, cst.BooleanOperation) and type(outer.operator) is type(node.operator):
        return  # the whole chain is looked at from its top
    operands = list(_operands(node, type(node.operator)))
    for dropped in range(len(operands)):
        rest = [operand for i, operand in enumerate(operands) if i != dropped]
        chain = rest[0]
        for operand in rest[1:]:
            chain = cst.BooleanOperation(chain, node.operator, operand)
        yield in_place_of(chain, node)


def _operands(node: cst.BaseExpression, operator: type[cst.BaseBooleanOp]) -> Iterator[cst.BaseExpression]:
    if isinstance(node, cst.BooleanOperation) and type(node.operator) is operator:
        yield from _operands(node.left, operator)
        yield from _operands(node.right, operator)
    else:
        yield node


def _with_operator(node: cst.CSTNode, table: dict[type[cst.BaseCompOp], cst.BaseCompOp]) -> Iterable[cst.CSTNode]:
    if not isinstance(node, cst.Comparison) or len(node.comparisons) != 1 or compares_with_none(node):
        return
    target = node.comparisons[0]
    other = table.get(type(target.operator))
    if other is not None:
        yield node.with_changes(comparisons=[target.with_changes(operator=other)])


def _negate_comparison(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``==`` for ``!=``, ``in`` for ``not in``, ``is`` for ``is not``, and the other way round."""
    return _with_operator(node, _OPPOSITE)


def _boundary(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``<`` for ``<=``, ``>`` for ``>=``, and the other way round."""
    return _with_operator(node, _BOUNDARY)


def _assume_present(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``x is not None`` is taken for true, ``x is None`` for false."""
    if isinstance(node, cst.Comparison) and compares_with_none(node):
        operator = node.comparisons[0].operator
        if isinstance(operator, (cst.Is, cst.IsNot)):
            yield in_place_of(cst.Name("True" if isinstance(operator, cst.IsNot) else "False"), node)


def _drop_not(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``x`` for ``not x``."""
    if isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Not):
        yield in_place_of(node.expression, node)


OPERATORS = (
    Operator("drop condition", _drop_condition),
    Operator("negate comparison", _negate_comparison),
    Operator("boundary", _boundary),
    Operator("assume present", _assume_present),
    Operator("drop not", _drop_not),
)
