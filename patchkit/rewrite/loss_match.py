"""The lines of a language model's ``forward`` from the call of its head to that of its loss function.

Each of them is one of a few forms, or the loss is left to upstream: the head's call; a product with, or quotient by, a
number of the model; a soft cap, ``c tanh(z / c)``, in three steps, under ``if c is not None`` or not; a cast to
float32; a number of the configuration that is given a name; ``loss = None``; and the condition that holds the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import libcst as cst

from patchkit.rewrite.global_calls import dotted
from patchkit.rewrite.logit_steps import Step, Steps, UnknownStepError, is_reading
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall
from patchkit.rewrite.straight_line import Obstacle, why_not_private

METHOD = "apply_loss"
"""What the new code calls, with what the head is given; then the result, with what the loss function is given."""

_LOSS_FUNCTION = "loss_function"
_GIVEN = ("logits", "labels", "vocab_size")
"""The first parameters of a loss function, in their order."""


@dataclass(frozen=True)
class LossMatch:
    """What was found.

    Attributes:
        call: of the head.
        first: position of its line in the body of the method; likewise ``last`` of the condition that holds the loss.
        hoisted: positions of lines in between that give a number a name.
        logits: name of the variable; likewise ``loss`` and ``labels``.
        steps: what is made of the logits.
        given: what the loss function is given besides, by name.
        unless_not: a variable on which it depends whether the logits are put into a tuple; None if they never are.
    """

    call: ProjectionCall
    first: int
    last: int
    hoisted: frozenset[int]
    logits: str
    loss: str
    labels: str
    steps: Steps
    given: tuple[cst.Arg, ...]
    unless_not: str | None


class NoLossError(Exception):
    """The code is of another form; carries the :class:`Obstacle`."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle.text)
        self.obstacle = obstacle


class LossMatcher:
    """Goes down from the call of the head, line by line."""

    def __init__(self, method: ParsedMethod, calls: Sequence[ProjectionCall]) -> None:
        self._method, self._calls = method, calls
        self._lines = method.function.body.body if isinstance(method.function.body, cst.IndentedBlock) else ()
        self._names_of_none: set[str] = set()
        self._first = 0

    def match(self) -> LossMatch:
        """What was found.

        Raises:
            NoLossError: it is another form.
        """
        call = self._only_call()
        self._first, logits = self._assignment(call)
        first = self._first
        steps = Steps(self._method, logits)
        self._step(steps, self._value(first), call.node)
        hoisted: set[int] = set()
        for index in range(first + 1, len(self._lines)):
            found = self._loss(index, logits)
            if found is not None:
                loss, labels, given = found
                inside = [line for at, line in enumerate(self._lines) if first <= at <= index and at not in hoisted]
                unless = self._check(inside, logits, loss)
                try:
                    steps.check()
                except UnknownStepError as error:
                    self._fail(error.node, error.why)
                return LossMatch(call, first, index, frozenset(hoisted), logits, loss, labels, steps, given, unless)
            if self._is_number(index, logits):
                hoisted.add(index)
            elif not self._is_none(index):
                self._transform(steps, self._lines[index])
        self._fail(call.node, "is not handed to a loss function of the model in the lines below it")

    # ---- the head

    def _only_call(self) -> ProjectionCall:
        call = self._calls[0]
        if len(self._calls) != 1:
            text = f"{self._method.quote_of_self(call.name)} is called {len(self._calls)} times"
            raise NoLossError(Obstacle(text, self._method.line(call.node)))
        if why := self._method.why_not_rewritable(call):
            raise NoLossError(Obstacle(why, self._method.line(call.node)))
        return call

    def _assignment(self, call: ProjectionCall) -> tuple[int, str]:
        """The line of the head's call, and the variable that it assigns to."""
        outer = list(self._method.ancestors(call.node))
        for index, line in enumerate(self._lines):
            if line in outer and (name := _assigned(line)) is not None:
                return index, name
        self._fail(call.node, "is not assigned to a variable in a line of its own")

    def _value(self, index: int) -> cst.BaseExpression:
        (statement,) = cst.ensure_type(self._lines[index], cst.SimpleStatementLine).body
        assert isinstance(statement, (cst.Assign, cst.AnnAssign))
        assert statement.value is not None
        return statement.value

    # ---- the lines below it

    def _step(
        self, steps: Steps, value: cst.BaseExpression, of: cst.BaseExpression | None, condition: Step | None = None
    ) -> None:
        try:
            steps.add(value, of, condition)
        except UnknownStepError as error:
            self._fail(error.node, error.why)

    def _transform(self, steps: Steps, line: cst.BaseStatement) -> None:
        """``logits = ...``, or several of these under ``if c is not None:``."""
        if _assigned(line) == steps.logits:
            self._step(steps, self._value(self._lines.index(line)), None)
            return
        condition = _not_none(line.test) if isinstance(line, cst.If) and line.orelse is None else None
        if condition is None:
            self._fail(line, "stands between")
        assert isinstance(line, cst.If)
        number = steps.number(condition)
        inner = line.body.body
        if number is None or any(_assigned(one) != steps.logits for one in inner):
            self._fail(line, "stands between")
        for one in inner:
            (statement,) = cst.ensure_type(one, cst.SimpleStatementLine).body
            assert isinstance(statement, (cst.Assign, cst.AnnAssign))
            assert statement.value is not None
            self._step(steps, statement.value, None, number)

    def _is_none(self, index: int) -> bool:
        """Whether a line is ``loss = None``."""
        name = _assigned(self._lines[index])
        if name is None or dotted(self._value(index)) != "None":
            return False
        self._names_of_none.add(name)
        return True

    def _is_number(self, index: int, logits: str) -> bool:
        """Whether a line gives a number of the model a name, and so may stand above the head's call."""
        name = _assigned(self._lines[index])
        if name in (None, logits):
            return False
        value = self._value(index)
        return dotted(value) != "None" and is_reading(self._method, value)

    # ---- the loss

    def _loss(self, index: int, logits: str) -> tuple[str, str, tuple[cst.Arg, ...]] | None:
        """Of ``if labels is not None: loss = self.loss_function(logits, labels)`` both names, and what is given."""
        line = self._lines[index]
        if not isinstance(line, cst.If) or not any(
            isinstance(node, cst.Call) and self._method.self_attribute(node.func) == _LOSS_FUNCTION
            for node in self._method.walk(line)
        ):
            return None
        labels = _not_none(line.test)
        inner = line.body.body
        if line.orelse is not None or not isinstance(labels, cst.Name) or len(inner) != 1:
            self._fail(line, "holds more than the loss")
        loss = _assigned(inner[0])
        if loss is None or loss == logits:
            self._fail(line, "holds more than the loss")
        (statement,) = cst.ensure_type(inner[0], cst.SimpleStatementLine).body
        call = statement.value if isinstance(statement, cst.Assign) else None
        if not isinstance(call, cst.Call) or self._method.self_attribute(call.func) != _LOSS_FUNCTION:
            self._fail(line, "holds more than the loss")
        if loss not in self._names_of_none and not self._none_above(loss, index):
            self._fail(line, f"is not the first to give `{loss}` a value")
        return loss, labels.value, self._given(call, logits)

    def _none_above(self, name: str, index: int) -> bool:
        """Whether the last line above that binds a name binds it to None."""
        binding = [at for at in range(index) if name in self._method.bound_in(self._lines[at])]
        return bool(binding) and _assigned(self._lines[binding[-1]]) == name and self._is_none(binding[-1])

    def _given(self, call: cst.Call, logits: str) -> tuple[cst.Arg, ...]:
        """What a loss function is given besides the logits, by name."""
        given: dict[str, cst.BaseExpression] = {}
        rest: list[cst.Arg] = []
        for position, argument in enumerate(call.args):
            if argument.star == "**" and isinstance(argument.value, cst.Name):
                rest.append(argument)
            elif argument.star or (argument.keyword is None and position >= len(_GIVEN)):
                self._fail(call, "is given arguments that are not known")
            else:
                given[argument.keyword.value if argument.keyword else _GIVEN[position]] = argument.value
        if dotted(given.pop("logits", call.func)) != logits:
            self._fail(call, f"is not given `{logits}` as they are")
        for value in given.values():
            if dotted(value) == logits or not (isinstance(value, cst.Name) or is_reading(self._method, value)):
                self._fail(value, "is computed for the loss function")
        none = cst.MaybeSentinel.DEFAULT
        named = [cst.Arg(value, keyword=cst.Name(name), equal=_EQUAL) for name, value in given.items()]
        return (*named, *(one.with_changes(comma=none) for one in rest))

    # ---- everything else

    def _check(self, inside: Sequence[cst.BaseStatement], logits: str, loss: str) -> str | None:
        """Nothing but these lines and the output may see the logits, and what the lines bind.

        Returns:
            The variable that says, where it is false, that the output is a tuple with the logits in it.
        """
        method = self._method
        for name in (logits, loss):
            if why := why_not_private(method, name):
                raise NoLossError(why)
        nodes = {node for line in inside for node in method.walk(line)}
        tuples: set[str] = set()
        for node in method.occurrences(logits):
            if node in nodes or self._is_output(node):
                continue
            without = self._unless(node)
            if without is None:
                self._fail(self._user(node), "uses the logits")
            tuples.add(without)
        if len(tuples) > 1:
            self._fail(method.function.name, f"returns tuples under conditions on {' and '.join(sorted(tuples))}")
        bound = {name for line in inside for name in method.bound_in(line)} - {logits, loss}
        for name in sorted(bound):
            for node in method.occurrences(name):
                if node not in nodes:
                    text = f"`{name}` is bound between the head and the loss, and used elsewhere"
                    raise NoLossError(Obstacle(text, method.line(node)))
        return tuples.pop() if tuples else None

    def _user(self, node: cst.CSTNode) -> cst.CSTNode:
        """The expression or statement that uses a name."""
        outer = self._method.parent(node)
        while isinstance(outer, (cst.Arg, cst.Element)):
            outer = self._method.parent(outer)
        return outer

    def _unless(self, node: cst.CSTNode) -> str | None:
        """``return_dict`` of what stands under ``if not return_dict:``, as part of a tuple.

        The variable must have the value then that it has where the head is called.
        """
        method = self._method
        if not isinstance(method.parent(node), cst.Element):
            return None
        for outer in method.ancestors(node):
            test = outer.test if isinstance(outer, cst.If) and outer in self._lines else None
            if not isinstance(test, cst.UnaryOperation) or not isinstance(test.operator, cst.Not):
                continue
            name = dotted(test.expression)
            assert isinstance(outer, cst.If)
            rebound = any(name in method.bound_in(line) for line in self._lines[self._first :])
            private = name in method.local_names and why_not_private(method, name) is None
            if private and not rebound and node in set(method.walk(outer.body)):
                return name
        return None

    def _is_output(self, node: cst.Name) -> bool:
        """Whether a name is handed to the output of the model, by name."""
        argument = self._method.parent(node)
        if not isinstance(argument, cst.Arg) or argument.keyword is None or argument.value is not node:
            return False
        call = cst.ensure_type(self._method.parent(argument), cst.Call)
        return isinstance(call.func, cst.Name) and "Output" in call.func.value

    def _fail(self, node: cst.CSTNode, why: str) -> NoReturn:
        raise NoLossError(Obstacle(f"{self._method.quote(node)} {why}", self._method.line(node)))


_EQUAL = cst.AssignEqual(whitespace_before=cst.SimpleWhitespace(""), whitespace_after=cst.SimpleWhitespace(""))


def _assigned(line: cst.CSTNode) -> str | None:
    """The one variable that a line assigns to, and does nothing else."""
    if not isinstance(line, cst.SimpleStatementLine) or len(line.body) != 1:
        return None
    (statement,) = line.body
    target: cst.BaseExpression | None = None
    if isinstance(statement, cst.AnnAssign) and statement.value is not None:
        target = statement.target
    elif isinstance(statement, cst.Assign) and len(statement.targets) == 1:
        target = statement.targets[0].target
    return target.value if isinstance(target, cst.Name) else None


def _not_none(test: cst.BaseExpression) -> cst.BaseExpression | None:
    """``x`` if an expression is ``x is not None``."""
    if not isinstance(test, cst.Comparison) or len(test.comparisons) != 1:
        return None
    (comparison,) = test.comparisons
    is_not = isinstance(comparison.operator, cst.IsNot) and dotted(comparison.comparator) == "None"
    return test.left if is_not else None
