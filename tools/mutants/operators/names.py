"""Faults in names: one tensor, index or side taken for its partner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import libcst as cst

from tools.mutants.operators.operator import Operator, Place, called_name, parameters_of

PARTNERS: dict[str, tuple[str, ...]] = {
    "first": ("second", "last"), "second": ("first",), "left": ("right",), "right": ("left",),
    "gate": ("up",), "up": ("gate",), "lora_a": ("lora_b",), "lora_b": ("lora_a",), "rows": ("columns",),
    "columns": ("rows",), "i": ("j",), "j": ("i",), "q": ("k",), "k": ("v",), "v": ("k",), "before": ("after",),
    "after": ("before",), "old": ("new",), "new": ("old",), "base": ("lora",), "lora": ("base",),
    "output": ("base",), "expected": ("found",), "found": ("expected",), "weight_a": ("weight_b",),
    "weight_b": ("weight_a",), "own_a": ("own_b",), "own_b": ("own_a",), "parameters_a": ("parameters_b",),
    "parameters_b": ("parameters_a",), "source": ("target",), "target": ("source",), "start": ("end",),
    "end": ("start",), "line": ("column",), "column": ("line",), "plain": ("patched",), "patched": ("plain",),
}  # fmt: skip
"""Names that are of one type wherever they stand side by side."""

_SYMMETRIC = frozenset({"transpose"})
"""Functions to which the order of their arguments says nothing."""

_DEFINES = (cst.AssignTarget, cst.AnnAssign, cst.NamedExpr, cst.AsName, cst.Param, cst.FunctionDef, cst.ClassDef)


def _partner(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """A name where its partner, which the same function uses too, should be read."""
    if not isinstance(node, cst.Name) or node.value not in PARTNERS or not _is_read(node, place):
        return
    function = place.function(node)
    if function is None:
        return
    for partner in PARTNERS[node.value]:
        if place.uses(function, partner, as_attribute=place.is_attribute(node)):
            yield node.with_changes(value=partner)


def _is_read(node: cst.Name, place: Place) -> bool:
    parent = place.parent(node)
    if isinstance(parent, cst.Arg) and parent.keyword is node:
        return False
    inner: cst.CSTNode = node
    for outer in place.above(node):
        if isinstance(outer, (cst.For, cst.CompFor)):
            return outer.target is not inner
        if isinstance(outer, _DEFINES):
            return isinstance(outer, (cst.NamedExpr, cst.AnnAssign)) and outer.value is inner
        if not isinstance(outer, (cst.Tuple, cst.List, cst.Element, cst.StarredElement, cst.Attribute)):
            return True
        inner = outer
    return True


def _swap_arguments(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """Two neighbouring arguments of one type the other way round."""
    if not isinstance(node, cst.Call) or called_name(node) in _SYMMETRIC:
        return
    for i in range(len(node.args) - 1):
        one, other = node.args[i], node.args[i + 1]
        if one.keyword or other.keyword or one.star or other.star:
            continue
        if _are_alike(node, i, place) and not one.value.deep_equals(other.value):
            arguments = list(node.args)
            arguments[i] = one.with_changes(value=other.value)
            arguments[i + 1] = other.with_changes(value=one.value)
            yield node.with_changes(args=arguments)


def _are_alike(call: cst.Call, i: int, place: Place) -> bool:
    """Whether a call's i-th argument and the next are known to be of one type: partners, or annotated so."""
    given = call.args[i].value, call.args[i + 1].value
    names = [_last_name(argument) for argument in given]
    if names[1] in PARTNERS.get(names[0], ()):
        return True
    called = place.defined(called_name(call))
    if called is not None:
        taken = [p for p in parameters_of(called) if p.name.value not in ("self", "cls")]
        return _same_annotation(taken[i : i + 2], place)
    function = place.function(call)
    if function is None or not all(isinstance(argument, cst.Name) for argument in given):
        return False
    return _same_annotation([p for p in parameters_of(function) if p.name.value in names], place)


def _same_annotation(parameters: Sequence[cst.Param], place: Place) -> bool:
    written = [place.code(p.annotation.annotation) for p in parameters if p.annotation is not None]
    return len(written) == 2 and written[0] == written[1]


def _last_name(expression: cst.BaseExpression) -> str:
    if isinstance(expression, cst.Attribute):
        return expression.attr.value
    return expression.value if isinstance(expression, cst.Name) else ""


OPERATORS = (Operator("partner", _partner), Operator("swap arguments", _swap_arguments))
