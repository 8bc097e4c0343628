"""What a move passes over: everything that could draw, write in place or change state, and is defined somewhere else.

The rules judge a call between two projections by its name. What it does is another text, which can change while this
one stays, so whoever trusts a proof of this text has to look at that one too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import libcst as cst

from patchkit.rewrite.effects import HARMLESS_METHODS
from patchkit.rewrite.parsed_method import ParsedMethod, end_of
from patchkit.rewrite.straight_line import Statement

_TENSOR_METHODS = HARMLESS_METHODS | {
    "chunk", "clone", "contiguous", "detach", "expand", "expand_as", "flatten", "float", "half", "bfloat16", "double",
    "mean", "mul", "movedim", "narrow", "permute", "pow", "repeat", "repeat_interleave", "reshape", "rsqrt", "select",
    "softmax", "split", "sqrt", "squeeze", "sum", "swapaxes", "t", "to", "transpose", "type", "type_as", "unbind",
    "unflatten", "unsqueeze", "view", "view_as",
}  # fmt: skip
"""Methods that are a tensor's, whatever value they are called on."""


def passed_over(method: ParsedMethod, window: Iterable[Statement], moved: Collection[cst.CSTNode]) -> tuple[str, ...]:
    """The names of what a run of statements calls, and reads of the object, before the last of some calls.

    Args:
        method: the method.
        window: consecutive statements, in which code is moved.
        moved: the calls that are moved, or that others are moved to; what is in them is not looked at.

    Returns:
        Each name once, in the order of the text: ``helper()`` and ``module.helper()`` for what is called by a global
        name, ``self.norm()`` for what is called of the object, ``self.scale`` for what is read of it, and ``.update()``
        for a method of any other value. Methods of tensors are left out.
    """
    last = max(end_of(method.range(node)) for node in moved)
    found: dict[str, None] = {}
    for statement in window:
        for node in method.walk(statement, moved):
            if end_of(method.range(node)) <= last and (name := _name(method, node)):
                found[name] = None
    return tuple(found)


def _name(method: ParsedMethod, node: cst.CSTNode) -> str | None:
    if isinstance(node, cst.Call):
        return _called(method, node.func)
    if isinstance(node, cst.Attribute) and method.is_self(node.value):
        return None if _is_called(method, node) else f"self.{node.attr.value}"
    return None


def _is_called(method: ParsedMethod, node: cst.Attribute) -> bool:
    parent = method.parent(node)
    return isinstance(parent, cst.Call) and parent.func is node


def _called(method: ParsedMethod, function: cst.BaseExpression) -> str | None:
    names: list[str] = []
    start = function
    while isinstance(start, cst.Attribute):
        names.insert(0, start.attr.value)
        start = start.value
    if method.is_self(start):
        return f"self.{'.'.join(names)}()"
    if isinstance(start, cst.Name) and start.value not in method.local_names:
        return f"{'.'.join([start.value, *names])}()"
    return None if names and names[-1] in _TENSOR_METHODS else f".{names[-1] if names else ''}()"
