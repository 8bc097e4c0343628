"""Statements that run one after the other: where calls stand in them, and what stands between two calls."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import libcst as cst

from patchkit.rewrite.effects import aliases, changes_in_place, is_harmless_read, why_call_is_unsafe
from patchkit.rewrite.parsed_method import ParsedMethod

Statement = cst.BaseSmallStatement | cst.BaseCompoundStatement


@dataclass(frozen=True)
class Obstacle:
    """Why a rule does not hold, and the line where that shows."""

    text: str
    line: int


@dataclass(frozen=True)
class Place:
    """A simple statement in a list of statements.

    Attributes:
        suite: the list: the body of a function, of a branch, of a loop ...
        index: position in ``statements(suite)``.
    """

    suite: cst.BaseSuite
    index: int

    @property
    def statement(self) -> Statement:
        """The statement itself."""
        return statements(self.suite)[self.index]


def statements(suite: cst.BaseSuite) -> list[Statement]:
    """The statements of a list, each on its own, also where several share a line."""
    found: list[Statement] = []
    for line in suite.body:
        if isinstance(line, cst.SimpleStatementLine):
            found.extend(line.body)
        elif isinstance(line, (cst.BaseSmallStatement, cst.BaseCompoundStatement)):
            found.append(line)
    return found


_PASSES_ON = (
    cst.Arg, cst.Call, cst.Attribute, cst.Subscript, cst.SubscriptElement, cst.Index, cst.Slice, cst.BinaryOperation,
    cst.UnaryOperation, cst.Tuple, cst.List, cst.Set, cst.Dict, cst.Element, cst.DictElement, cst.StarredElement,
    cst.NamedExpr,
)  # fmt: skip
"""Expressions that evaluate every part of themselves exactly once."""


def place_of(method: ParsedMethod, expression: cst.BaseExpression) -> Place | None:
    """Where an expression is evaluated: exactly once each time its simple statement runs.

    None if it is evaluated lazily or repeatedly within its statement, or stands in the header of a compound one.
    """
    inner: cst.CSTNode = expression
    for outer in method.ancestors(expression):
        if isinstance(outer, (cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Expr, cst.Return)):
            return _place(method, outer) if outer.value is inner else None
        if not isinstance(outer, _PASSES_ON) or unpacks_late(outer):
            return None
        inner = outer
    return None


def unpacks_late(call: cst.CSTNode) -> bool:
    """Whether a node is a call with ``*`` behind a keyword, ``f(a=b(), *c())``: what it unpacks is evaluated first."""
    if not isinstance(call, cst.Call):
        return False
    keywords = [index for index, argument in enumerate(call.args) if argument.keyword]
    return bool(keywords) and any(argument.star == "*" for argument in call.args[keywords[0] :])


def _place(method: ParsedMethod, statement: cst.BaseSmallStatement) -> Place | None:
    suite = method.parent(statement)
    if isinstance(suite, cst.SimpleStatementLine):
        suite = method.parent(suite)
    if not isinstance(suite, cst.BaseSuite):
        return None
    return Place(suite, next(i for i, found in enumerate(statements(suite)) if found is statement))


def why_not_private(method: ParsedMethod, name: str) -> Obstacle | None:
    """Why other code than the method's own statements may give a variable another value, or None if none can."""
    if method.introspects:
        return Obstacle("the method looks at its own local names", method.line(method.function))
    if name not in method.local_names:
        return Obstacle(f"`{name}` is not a local variable", method.line(method.function))
    for node in method.occurrences(name):
        if isinstance(method.parent(node), cst.NameItem):
            return Obstacle(f"`{name}` is declared global or nonlocal", method.line(node))
        if method.is_nested(node) and not is_harmless_read(method, node):
            return Obstacle(f"`{name}` is used by a nested function", method.line(node))
    return None


def why_not_movable(
    method: ParsedMethod,
    window: Sequence[Statement],
    moved: Collection[cst.CSTNode],
    value: str,
    afterwards: Collection[cst.CSTNode] = (),
) -> Obstacle | None:
    """Why calls that read ``value`` cannot be evaluated elsewhere within a run of statements, or None if they can.

    Args:
        method: the method.
        window: consecutive statements. What the last one assigns to is bound after everything else, and may be
            ``value``; it may also return.
        moved: the nodes that are evaluated elsewhere; what is in them is not looked at.
        value: the local variable that they read.
        afterwards: calls that are made only after everything that is moved, such as the ones around the last of it.
    """
    names = aliases(method, value)
    own = aliases(method, method.self_name or "")
    for statement in window:
        for node in method.walk(statement, moved):
            text = (
                _why_exit(node, window[-1])
                or (None if node in afterwards else _why_call(method, node, own))
                or _why_in_place(method, node)
                or (_why_name(method, node, value, names, window[-1]) if isinstance(node, cst.Name) else None)
            )
            if text:
                return Obstacle(text, method.line(node))
    return None


_EXITS: dict[type[cst.CSTNode], str] = {
    cst.Return: "return",
    cst.Break: "break",
    cst.Continue: "continue",
    cst.Raise: "raise",
    cst.Assert: "assert",
    cst.Yield: "yield",
    cst.Await: "await",
    cst.Asynchronous: "async",
}


def _why_exit(node: cst.CSTNode, last: Statement) -> str | None:
    word = None if node is last else _EXITS.get(type(node))
    return f"`{word}` stands between" if word else None


def _why_call(method: ParsedMethod, node: cst.CSTNode, own: Collection[str]) -> str | None:
    if isinstance(node, cst.Call) and (why := why_call_is_unsafe(method, node, own)):
        return f"{method.quote(node)} stands between and {why}"
    return None


def _why_in_place(method: ParsedMethod, node: cst.CSTNode) -> str | None:
    # Whatever is changed might share memory with the input, even a result of a projection that is an identity.
    if changes_in_place(method, node):
        return f"{method.quote(node)} stands between and changes a value in place"
    return None


def _why_name(method: ParsedMethod, name: cst.Name, value: str, names: frozenset[str], last: Statement) -> str | None:
    if not method.is_identifier(name):
        return None
    if method.is_self(name):
        parent = method.parent(name)
        if isinstance(parent, cst.Attribute) or is_harmless_read(method, name):
            return None
        return f"`{name.value}` itself is passed on in between"
    if method.binds(name) and name.value == value and not _is_target_of(method, name, last):
        return f"`{value}` is bound again in between"
    if name.value in names and method.reads(name) and not is_harmless_read(method, name):
        also = "" if name.value == value else f", which may be the same tensor as `{value}`,"
        return f"`{name.value}`{also} is also used in between, which might change it"
    return None


def _is_target_of(method: ParsedMethod, name: cst.Name, statement: Statement) -> bool:
    """Whether a name is what an assignment statement assigns to, last thing of all."""
    if not isinstance(statement, (cst.Assign, cst.AnnAssign)):
        return False
    for outer in method.ancestors(name):
        if outer is statement:
            return True
        if not isinstance(outer, (cst.Tuple, cst.List, cst.Element, cst.StarredElement, cst.AssignTarget)):
            return False
    return False
