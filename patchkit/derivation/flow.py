"""What a ``forward`` calls, and on what: its text followed once from top to bottom, without running any of it.

This is quick and coarse. It finds what a class may be; whether a call can be replaced is the rewriter's to say.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from patchkit.upstream.classes import Function


@dataclass(eq=False)
class Value:
    """What an expression gives. Two are the same only if they are one object: one evaluation.

    Attributes:
        written: the expression; None for what a statement has bound in a way that is not followed.
        origins: the attributes of self from whose calls it is computed.
    """

    written: ast.expr | None = None
    origins: frozenset[str] = frozenset()


@dataclass(eq=False)
class Called(Value):
    """What ``self.name(...)`` gives.

    Attributes:
        name: of the attribute.
        argument: what it is given; None if that is not one positional argument.
        variable: the variable that it is given, if it is one.
        suite: a number for the statements among which it stands: the body of a function, of a branch, of a loop; one of
            its own where a condition within an expression decides whether it is called.
        nested: whether it stands in a function within the method.
    """

    name: str = ""
    argument: Value | None = None
    variable: str | None = None
    suite: int = 0
    nested: bool = False


@dataclass(eq=False)
class Applied(Value):
    """What a global function gives for one argument.

    Attributes:
        function: its name with dots, as it is written.
        argument: what it is given.
    """

    function: str = ""
    argument: Value = field(default_factory=Value)


@dataclass(eq=False)
class Dropped(Value):
    """What a global function of dropout gives.

    Attributes:
        function: its name with dots, as it is written.
        argument: what it drops elements of.
    """

    function: str = ""
    argument: Value = field(default_factory=Value)


@dataclass(eq=False)
class Clamped(Value):
    """What ``t.clamp(max=self.limit)`` gives, or with ``min=-self.limit`` too.

    Attributes:
        limit: name of the attribute.
        from_both_sides: whether it has a lower end as well.
        argument: ``t``.
    """

    limit: str = ""
    from_both_sides: bool = False
    argument: Value = field(default_factory=Value)


@dataclass(eq=False)
class Product(Value):
    """A product of two factors, in the order in which they are written."""

    factors: tuple[Value, Value] = field(default_factory=lambda: (Value(), Value()))


@dataclass(eq=False)
class Halves(Value):
    """Something that is split in two along the last dimension."""

    whole: Value = field(default_factory=Value)


@dataclass(eq=False)
class Half(Value):
    """One of two halves: ``index`` is 0 or 1."""

    halves: Halves = field(default_factory=Halves)
    index: int = 0


def calls_in(function: Function) -> list[Called]:
    """The calls of attributes of self in a method, in the order of evaluation.

    Raises:
        RecursionError: the text is nested too deeply.
    """
    parameters = [*function.args.posonlyargs, *function.args.args]
    if not parameters:
        return []
    follower = _Follower(parameters[0].arg, _local_names(function))
    follower.suite_of(function.body, {})
    return follower.calls


def _local_names(function: Function) -> frozenset[str]:
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
    return frozenset(names)


_Variables = dict[str, Value]


class _Follower:
    """Follows the statements of one method.

    A variable has the value of the last assignment. What is bound in a branch or a loop is another value after it.
    """

    def __init__(self, self_name: str, local_names: frozenset[str]) -> None:
        self.self_name, self.local_names = self_name, local_names
        self.calls: list[Called] = []
        self._suites = 0
        self._suite = 0
        self._nested = False

    # ---- statements

    def suite_of(self, body: Iterable[ast.AST], variables: _Variables, *, nested: bool = False) -> None:
        """Follow statements that run one after the other."""
        outer = self._suite, self._nested
        self._suites += 1
        self._suite, self._nested = self._suites, self._nested or nested
        for statement in body:
            self._statement(statement, variables)
        self._suite, self._nested = outer

    def _statement(self, node: ast.AST, variables: _Variables) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.suite_of(node.body, dict(variables), nested=True)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is not None:
                value = self.value_of(node.value, variables)
                for target in targets:
                    self._bind(target, value, variables)
        elif isinstance(node, ast.AugAssign):
            value = self.value_of(node.value, variables)
            before = self.value_of(node.target, variables)
            self._bind(node.target, Value(None, value.origins | before.origins), variables)
        elif isinstance(node, ast.Expr):
            value = self.value_of(node.value, variables)
            self._may_change_owner(node.value, value, variables)
        else:
            self._compound(node, variables)

    def _compound(self, node: ast.AST, variables: _Variables) -> None:
        """A statement that holds others, or one that binds nothing."""
        if isinstance(node, ast.If) and _only_casts(node):
            self.value_of(node.test, variables)
            return
        loops = isinstance(node, (ast.For, ast.AsyncFor, ast.While))
        if loops:
            self._forget(_bound_in(node), [variables], variables)
        after = []
        for name, child in ast.iter_fields(node):
            if name in {"body", "orelse", "finalbody", "handlers", "cases"} and isinstance(child, list):
                for suite in [child] if name not in {"handlers", "cases"} else [one.body for one in child]:
                    after.append(dict(variables))
                    self.suite_of(suite, after[-1])
            else:
                for part in child if isinstance(child, list) else [child]:
                    if isinstance(part, ast.withitem):
                        value = self.value_of(part.context_expr, variables)
                        if part.optional_vars is not None:
                            self._bind(part.optional_vars, Value(None, value.origins), variables)
                    elif isinstance(part, ast.expr) and name != "target":
                        self.value_of(part, variables)
        known = [variables, *after]
        changed = (name for one in after for name in one if name in variables and one[name] is not variables[name])
        self._forget([*_bound_in(node), *changed] if after else (), known, variables)

    def _forget(self, names: Iterable[str], known: Sequence[_Variables], variables: _Variables) -> None:
        """Take variables for anything that their values may be."""
        for name in dict.fromkeys(names):
            variables[name] = Value(None, _origins_of(one[name] for one in known if name in one))

    def _bind(self, target: ast.expr, value: Value, variables: _Variables) -> None:
        if isinstance(target, ast.Name):
            variables[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            for index, element in enumerate(target.elts):
                part = Value(None, value.origins)
                if isinstance(value, Halves) and len(target.elts) == 2:
                    part = Half(None, value.origins, value, index)
                elif isinstance(value, _Listed) and len(value.parts) == len(target.elts):
                    part = value.parts[index]
                self._bind(element, part, variables)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, Value(None, value.origins), variables)
        else:  # an attribute or an element of something
            self._add_origins(target, value, variables)

    def _may_change_owner(self, node: ast.expr, value: Value, variables: _Variables) -> None:
        """``found.append(x)`` as a statement, or ``x.add_(y)``."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            self._add_origins(node.func.value, value, variables)

    def _add_origins(self, owner: ast.expr, value: Value, variables: _Variables) -> None:
        while isinstance(owner, (ast.Attribute, ast.Subscript)):
            owner = owner.value
        if isinstance(owner, ast.Name) and owner.id != self.self_name and value.origins:
            before = variables.get(owner.id, Value())
            variables[owner.id] = Value(None, before.origins | value.origins)

    # ---- expressions

    def value_of(self, node: ast.expr, variables: _Variables) -> Value:
        """What an expression gives, with its calls noted."""
        special: Callable[[Any, _Variables], Value] | None = getattr(self, f"_{type(node).__name__}", None)
        return special(node, variables) if special else self._other(node, variables)

    def _other(self, node: ast.expr, variables: _Variables) -> Value:
        parts = [self.value_of(child, variables) for child in _expressions_in(node)]
        return Value(node, _origins_of(parts))

    def _Name(self, node: ast.Name, variables: _Variables) -> Value:  # noqa: N802
        return variables.setdefault(node.id, Value(node))

    def _Tuple(self, node: ast.Tuple | ast.List, variables: _Variables) -> Value:  # noqa: N802
        parts = [self.value_of(child, variables) for child in node.elts]
        return _Listed(node, _origins_of(parts), parts)

    _List = _Tuple

    def _NamedExpr(self, node: ast.NamedExpr, variables: _Variables) -> Value:  # noqa: N802
        value = self.value_of(node.value, variables)
        variables[node.target.id] = value
        return value

    def _BinOp(self, node: ast.BinOp, variables: _Variables) -> Value:  # noqa: N802
        left, right = self.value_of(node.left, variables), self.value_of(node.right, variables)
        origins = left.origins | right.origins
        return Product(node, origins, (left, right)) if isinstance(node.op, ast.Mult) else Value(node, origins)

    def _IfExp(self, node: ast.IfExp, variables: _Variables) -> Value:  # noqa: N802
        self.value_of(node.test, variables)
        values = [self._conditional(part, variables) for part in (node.body, node.orelse)]
        return Value(node, _origins_of(values))

    def _BoolOp(self, node: ast.BoolOp, variables: _Variables) -> Value:  # noqa: N802
        values = [self._conditional(part, variables) for part in node.values]
        return Value(node, _origins_of(values))

    def _conditional(self, node: ast.expr, variables: _Variables) -> Value:
        outer = self._suite
        self._suites += 1
        self._suite = self._suites
        value = self.value_of(node, variables)
        self._suite = outer
        return value

    def _Lambda(self, node: ast.Lambda, variables: _Variables) -> Value:  # noqa: N802
        self.suite_of([ast.Expr(node.body)], dict(variables), nested=True)
        return Value(node)

    def _comprehension(self, node: ast.expr, variables: _Variables) -> Value:
        inner = dict(variables)
        for generator in getattr(node, "generators", ()):
            self._conditional(generator.iter, inner)
            self._bind(generator.target, Value(), inner)
            for condition in generator.ifs:
                self._conditional(condition, inner)
        values = [self._conditional(child, inner) for child in _expressions_in(node)]
        return Value(node, _origins_of(values))

    _ListComp = _SetComp = _DictComp = _GeneratorExp = _comprehension

    def _Subscript(self, node: ast.Subscript, variables: _Variables) -> Value:  # noqa: N802
        owner = self.value_of(node.value, variables)
        self.value_of(node.slice, variables)
        index = _integer(node.slice)
        if isinstance(owner, Halves) and index in (0, 1):
            return Half(node, owner.origins, owner, index)
        return Value(node, owner.origins)

    def _Call(self, node: ast.Call, variables: _Variables) -> Value:  # noqa: N802
        function = _dotted(node.func)
        is_of_self = bool(function) and function[0] == self.self_name
        is_global = bool(function) and not is_of_self and function[0] not in self.local_names
        owner = None
        if not is_of_self and not is_global:
            owner = self.value_of(node.func.value if isinstance(node.func, ast.Attribute) else node.func, variables)
        given = [self.value_of(one, variables) for one in node.args]
        named = [self.value_of(keyword.value, variables) for keyword in node.keywords]
        origins = _origins_of([*given, *named, *([owner] if owner else ())])
        alone = given[0] if len(given) == 1 and not named and not isinstance(node.args[0], ast.Starred) else None
        if is_of_self and len(function) == 2:
            variable = node.args[0].id if alone and isinstance(node.args[0], ast.Name) else None
            name = function[1]
            self.calls.append(Called(node, origins | {name}, name, alone, variable, self._suite, self._nested))
            return self.calls[-1]
        if (whole := _split_in_two(node, owner, given)) is not None:
            return Halves(node, origins, whole)
        if owner is not None and (clamp := self._clamp(node)) is not None:
            return Clamped(node, origins, *clamp, owner)
        if is_global and function[-1] == "dropout" and given and not isinstance(node.args[0], ast.Starred):
            return Dropped(node, origins, ".".join(function), given[0])
        return Applied(node, origins, ".".join(function), alone) if is_global and alone else Value(node, origins)

    def _clamp(self, node: ast.Call) -> tuple[str, bool] | None:
        """Limit and whether it is one from both sides, of ``t.clamp(max=self.limit)`` and its like."""
        if not isinstance(node.func, ast.Attribute) or node.func.attr != "clamp" or node.args:
            return None
        ends = {keyword.arg: keyword.value for keyword in node.keywords}
        above, below = ends.pop("max", None), ends.pop("min", None)
        limit = _dotted(above) if above is not None else []
        if ends or len(limit) != 2 or limit[0] != self.self_name:
            return None
        if below is None or (isinstance(below, ast.Constant) and below.value is None):
            return limit[1], False
        negative = isinstance(below, ast.UnaryOp) and isinstance(below.op, ast.USub)
        return (limit[1], True) if negative and _dotted(below.operand) == limit else None  # type: ignore[attr-defined]


@dataclass(eq=False)
class _Listed(Value):
    """Values that are listed in a tuple."""

    parts: list[Value] = field(default_factory=list)


def _only_casts(node: ast.If) -> bool:
    """Whether all that stands under a condition is ``h = h.to(...)``."""
    if node.orelse or len(node.body) != 1:
        return False
    (statement,) = node.body
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return False
    names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return len(statement.targets) == 1 and [*names, "to"] == _dotted(statement.value.func)


def _origins_of(values: Iterable[Value]) -> frozenset[str]:
    return frozenset[str]().union(*(value.origins for value in values))


def _split_in_two(node: ast.Call, owner: Value | None, given: Sequence[Value]) -> Value | None:
    """What ``t.chunk(2, dim=-1)`` or ``torch.chunk(t, 2, dim=-1)`` splits, else None."""
    if not isinstance(node.func, ast.Attribute) or node.func.attr != "chunk":
        return None
    sizes = [_integer(value) for value in (*node.args, *(keyword.value for keyword in node.keywords))]
    if sizes == [2, -1]:
        return owner
    return given[0] if sizes[1:] == [2, -1] and given else None


def _bound_in(node: ast.AST) -> list[str]:
    """The names that a statement binds, in itself or in what it holds, in the order of the text."""
    names = (
        child.id for child in ast.walk(node) if isinstance(child, ast.Name) and not isinstance(child.ctx, ast.Load)
    )
    return list(dict.fromkeys(names))


def _expressions_in(node: ast.AST) -> list[ast.expr]:
    """The expressions of which one is made, also through what is none itself, such as a keyword or a slice."""
    found: list[ast.expr] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            found.append(child)
        elif isinstance(child, ast.keyword):
            found.append(child.value)
    return found


def _dotted(expression: ast.expr) -> list[str]:
    """The parts of a name with dots; none for anything else."""
    names: list[str] = []
    while isinstance(expression, ast.Attribute):
        names.insert(0, expression.attr)
        expression = expression.value
    return [expression.id, *names] if isinstance(expression, ast.Name) else []


def _integer(expression: ast.expr) -> int | None:
    """The value of an integer literal, with or without a minus."""
    if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
        inner = _integer(expression.operand)
        return None if inner is None else -inner
    return expression.value if isinstance(expression, ast.Constant) and type(expression.value) is int else None
