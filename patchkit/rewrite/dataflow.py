"""Following the temporaries of straight-line code back to what was assigned to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeGuard

import libcst as cst

from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.straight_line import Obstacle, Place, Statement, statements


@dataclass(frozen=True)
class Value:
    """An expression whose value is meant, after temporaries were followed.

    Attributes:
        expression: the expression; a name if it could not be followed further.
        index: position of its statement in the statement list.
        part: which part of the expression's value is meant, where a name is one of two targets it was unpacked to;
            None for all of it.
    """

    expression: cst.BaseExpression
    index: int
    part: int | None = None


@dataclass
class Temporaries:
    """The temporaries of one statement list that lead to one expression.

    Attributes:
        method: the method.
        place: the statement of the expression; None if temporaries cannot be followed from where it stands.
        followed: the reads that were followed.
        definitions: index of each assignment that was followed, with the names it binds and whether each was followed:
            what may be dropped if nothing else needs the names.
    """

    method: ParsedMethod
    place: Place | None
    followed: set[cst.Name] = field(default_factory=set)
    definitions: dict[int, dict[str, bool]] = field(default_factory=dict)

    def statements(self) -> list[Statement]:
        """The statement list."""
        return statements(self.place.suite) if self.place else []

    def follow(self, expression: cst.BaseExpression, index: int) -> Value:
        """Replace names by what was assigned to them, as long as that is certain.

        Args:
            expression: what is evaluated.
            index: position of its statement in the list.
        """
        while isinstance(expression, cst.Name):
            defined = self.last_binding(expression.value, index)
            if defined is None or self._binds_midway(expression.value, index):
                break
            statement = self.statements()[defined]
            targets = _targets(statement)
            if expression.value not in targets:
                break
            self.followed.add(expression)
            self.definitions.setdefault(defined, dict.fromkeys(targets, False))[expression.value] = True
            assert isinstance(statement, (cst.Assign, cst.AnnAssign))
            assert statement.value is not None
            part = targets.index(expression.value)
            expression, index = statement.value, defined
            if len(targets) == 2:
                if not _is_pair(expression):
                    return Value(expression, index, part)
                expression = expression.elements[part].value
        return Value(expression, index)

    def pass_over(self, read: cst.Name, index: int) -> None:
        """Take a statement for one that leaves the value of a variable as it is, and that goes with it.

        Args:
            read: where the value is read, below the statement.
            index: position of the statement, which reads the variable itself and binds nothing else.
        """
        inside = set(self.method.walk(self.statements()[index]))
        self.followed.update(node for node in self.method.occurrences(read.value) if node in inside)
        self.followed.add(read)
        self.definitions[index] = {read.value: True}

    def last_binding(self, name: str, index: int) -> int | None:
        """The last statement above ``index`` that may bind a name; None if none in the list does."""
        for i in range(index - 1, -1, -1):
            if name in self.method.bound_in(self.statements()[i]):
                return i
        return None

    def why_unfollowed(self, name: cst.Name, index: int) -> Obstacle:
        """Why a name could not be followed further, for people."""
        defined = self.last_binding(name.value, index)
        if self.place is None:
            return Obstacle(f"`{name.value}` is read where it may not be evaluated", self.method.line(name))
        if defined is None:
            return Obstacle(f"`{name.value}` is not computed in the same straight line", self.method.line(name))
        statement = self.statements()[defined]
        return Obstacle(f"{self.method.quote(statement)} stands in between", self.method.line(statement))

    def why_not_droppable(self) -> Obstacle | None:
        """Why the assignments that were followed are needed by other code too, or None if they can go."""
        method, lines = self.method, self.statements()
        for index, names in self.definitions.items():
            for name, followed in names.items():
                if not followed:
                    return Obstacle(f"{method.quote(lines[index])} also computes `{name}`", method.line(lines[index]))
                for read in self._possible_reads(name, index):
                    if read not in self.followed:
                        text = f"the value of `{name}` in {method.quote(lines[index])} is used elsewhere, too"
                        return Obstacle(text, method.line(read))
        return None

    def _possible_reads(self, name: str, index: int) -> list[cst.Name]:
        """Reads that may see what the statement at ``index`` gave to a name."""
        assert self.place is not None
        method = self.method
        reads = [node for node in method.occurrences(name) if method.reads(node)]
        until = self._next_certain_binding(name, index)
        suite_is_body = self.place.suite is method.function.body
        if until is None or not (suite_is_body or until <= self.place.index):
            if not suite_is_body:
                # The value may leave the suite, or come round in a loop.
                return reads
            until = len(self.statements()) - 1
        inside: set[cst.CSTNode] = set()
        for statement in self.statements()[index + 1 : until + 1]:
            inside.update(method.walk(statement))
        return [node for node in reads if node in inside or method.is_nested(node)]

    def _next_certain_binding(self, name: str, index: int) -> int | None:
        lines = self.statements()
        return next((i for i in range(index + 1, len(lines)) if name in _targets(lines[i])), None)

    def _binds_midway(self, name: str, index: int) -> bool:
        """Whether a statement binds a name while its value is evaluated, as ``:=`` does."""
        statement = self.statements()[index]
        value = getattr(statement, "value", None)
        return value is not None and name in self.method.bound_in(value)


def _is_pair(expression: cst.BaseExpression) -> TypeGuard[cst.Tuple | cst.List]:
    """Whether an expression lists two values."""
    return (
        isinstance(expression, (cst.Tuple, cst.List))
        and len(expression.elements) == 2
        and all(isinstance(element, cst.Element) for element in expression.elements)
    )


def _targets(statement: Statement) -> tuple[str, ...]:
    """The names that a plain assignment gives a value to: one, or two that it is unpacked to; else nothing."""
    if isinstance(statement, cst.AnnAssign) and statement.value is not None:
        target = statement.target
    elif isinstance(statement, cst.Assign) and len(statement.targets) == 1:
        target = statement.targets[0].target
    else:
        return ()
    if isinstance(target, cst.Name):
        return (target.value,)
    if not isinstance(target, (cst.Tuple, cst.List)) or len(target.elements) != 2:
        return ()
    names = tuple(
        element.value.value
        for element in target.elements
        if isinstance(element, cst.Element) and isinstance(element.value, cst.Name)
    )
    return names if len(set(names)) == 2 else ()
