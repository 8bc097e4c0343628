"""Calls of global functions within an MLP, and of dropout, whether that is one of them or a module."""

from __future__ import annotations

import libcst as cst

from patchkit.arch.spec import MLP, GatedMLP
from patchkit.rewrite.parsed_method import ParsedMethod, one_positional

_PARAMETERS = ("input", "p", "training")
"""Of ``torch.nn.functional.dropout``, without ``inplace``."""


def is_global(method: ParsedMethod, expression: cst.BaseExpression, name: str) -> bool:
    """Whether an expression is this name with dots, which starts with no local variable."""
    return dotted(expression) == name and name.partition(".")[0] not in method.local_names


def dropout_of(
    method: ParsedMethod, block: GatedMLP | MLP, expression: cst.BaseExpression
) -> tuple[tuple[cst.Arg, ...], cst.BaseExpression] | None:
    """Of a call of a block's dropout, what finds it again, as arguments by name, and what it is given; else None.

    What a function is given besides is taken only where it may be evaluated later: constants, and attributes of the
    object.
    """
    if not isinstance(expression, cst.Call):
        return None
    if block.dropout is not None and method.self_attribute(expression.func) == block.dropout:
        before = one_positional(expression)
        return None if before is None else ((named("dropout", expression.func),), before)
    function = block.dropout_function
    if function is None or not is_global(method, expression.func, function):
        return None
    positional = [one for one in expression.args if one.keyword is None]
    found = dict(zip(_PARAMETERS, positional, strict=False))
    found |= {one.keyword.value: one for one in expression.args if one.keyword is not None}
    if not positional or len(found) != len(expression.args) or not found.keys() <= set(_PARAMETERS):
        return None
    before = found.pop("input").value
    if any(one.star for one in expression.args) or not all(_may_wait(method, one.value) for one in found.values()):
        return None
    return (named("dropout", expression.func), *(named(name, one.value) for name, one in found.items())), before


def _may_wait(method: ParsedMethod, expression: cst.BaseExpression) -> bool:
    if method.self_attribute(expression) is not None:
        return True
    return isinstance(expression, (cst.Integer, cst.Float)) or dotted(expression) in {"True", "False"}


def named(name: str, value: cst.BaseExpression) -> cst.Arg:
    """An argument by name, as it is written in new code."""
    return cst.Arg(value, keyword=cst.Name(name), equal=_EQUAL)


_EQUAL = cst.AssignEqual(whitespace_before=cst.SimpleWhitespace(""), whitespace_after=cst.SimpleWhitespace(""))


def dotted(expression: cst.BaseExpression) -> str:
    """A name with dots as it is written, but for white space; empty for anything else."""
    names: list[str] = []
    while isinstance(expression, cst.Attribute):
        names.insert(0, expression.attr.value)
        expression = expression.value
    return ".".join([expression.value, *names]) if isinstance(expression, cst.Name) else ""
