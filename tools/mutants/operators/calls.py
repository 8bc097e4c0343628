"""Faults in calls: a conversion or a copy that is not made, an option that is not given."""

from __future__ import annotations

from collections.abc import Iterable

import libcst as cst

from tools.mutants.operators.operator import Operator, Place, in_place_of

_CONVERSIONS = frozenset(
    {"to", "float", "double", "detach", "clone", "contiguous", "t", "lower", "strip", "resolve", "absolute", "copy"}
)
"""Methods that return their object in another form."""

_OPTIONS = frozenset({"alpha", "beta", "dtype", "keepdim", "key", "create_graph", "memory_format", "default"})
"""Keywords that the functions which take them have a default for."""


def _drop_conversion(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """``x`` for ``x.to(dtype)``, ``x.detach()``, ``x.clone()``, ..."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute) and node.func.attr.value in _CONVERSIONS:
        yield in_place_of(node.func.value, node)


def _drop_option(node: cst.CSTNode, place: Place) -> Iterable[cst.CSTNode]:
    """A call without one of its options."""
    if not isinstance(node, cst.Call):
        return
    for i, argument in enumerate(node.args):
        if argument.keyword is not None and argument.keyword.value in _OPTIONS:
            yield node.with_changes(args=[*node.args[:i], *node.args[i + 1 :]])


OPERATORS = (Operator("drop conversion", _drop_conversion), Operator("drop option", _drop_option))
