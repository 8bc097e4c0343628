"""Faults in tables: one element of a tuple, set or dictionary of cases is missing; an order is not kept."""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from tools.mutants.operators.operator import Operator, Place, called_name, in_place_of

_TAKES_CASES = frozenset({"isinstance", "issubclass", "frozenset", "set", "any", "all", "startswith", "endswith"})
"""Functions for which a tuple is a list of cases."""

_NO_CASES = frozenset({"__all__", "__slots__", "OPERATORS"})


def _skip_element(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """Each element of a table of cases is missing in turn."""
    if not isinstance(node, (cst.Tuple, cst.List, cst.Set, cst.Dict)) or not _is_table(node, place):
        return
    if len(node.elements) < 2:
        return
    for i in range(len(node.elements)):
        rest = [element for j, element in enumerate(node.elements) if j != i]
        if isinstance(node, cst.Tuple) and len(rest) == 1:
            rest = [rest[0].with_changes(comma=cst.Comma())]
        yield node.with_changes(elements=rest)


def _is_table(node: cst.Tuple | cst.List | cst.Set | cst.Dict, place: Place) -> bool:
    parent = place.parent(node)
    if isinstance(node, cst.Set):
        return True
    if isinstance(node, cst.Dict):
        return _is_constant(node, place)
    if isinstance(parent, (cst.ComparisonTarget, cst.ExceptHandler)):
        return True
    if isinstance(parent, (cst.For, cst.CompFor)):
        return parent.iter is node
    if isinstance(parent, cst.Arg):
        return called_name(place.parent(parent)) in _TAKES_CASES
    return _is_constant(node, place)


def _is_constant(node: cst.CSTNode, place: Place) -> bool:
    """Whether this is the value of a constant of the module."""
    parent = place.parent(node)
    if isinstance(parent, cst.Assign):
        target = parent.targets[0].target
    elif isinstance(parent, cst.AnnAssign):
        target = parent.target
    else:
        return False
    if place.function(node) is not None or not isinstance(target, cst.Name) or target.value in _NO_CASES:
        return False
    return target.value.isupper()


def _drop_order(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``x`` for ``reversed(x)``."""
    if isinstance(node, cst.Call) and called_name(node) == "reversed" and len(node.args) == 1:
        yield in_place_of(node.args[0].value, node)


OPERATORS = (Operator("skip element", _skip_element), Operator("drop order", _drop_order))
