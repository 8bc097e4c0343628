"""What the rules for MLPs share: the code that leads to one call of the down projection, compared with a form.

The call of down becomes ``self.apply_mlp(x)`` and the assignments to temporaries go. That moves calls down to where
down stood, so nothing in between may be able to see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import libcst as cst

from patchkit.arch.spec import MLP, GatedMLP, Part
from patchkit.rewrite.conditional_cast import exceptions_of_cast
from patchkit.rewrite.dataflow import Temporaries, Value
from patchkit.rewrite.edits import Edits, in_parentheses_of
from patchkit.rewrite.global_calls import dropout_of, is_global, named
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall, end_of, one_positional
from patchkit.rewrite.passed_over import passed_over
from patchkit.rewrite.sites import RuleName, Site
from patchkit.rewrite.straight_line import (
    Obstacle,
    Place,
    Statement,
    place_of,
    statements,
    why_not_movable,
    why_not_private,
)

METHOD = "apply_mlp"
"""What the new code calls, whichever form the MLP has: with its input, and perhaps an activation and dropout."""


@dataclass(frozen=True)
class Match:
    """One occurrence of an MLP.

    Attributes:
        input: the variable that it reads; None for another expression, which then stands within the call of down.
        calls: the calls of its projections and of its activation, in upstream's order.
        drop: positions of the assignments to temporaries, which are no longer needed.
        gate_first: see :class:`patchkit.rewrite.sites.Site`; likewise ``passed_over``.
        given: what the new call is given by name, to find what stands before down as upstream does.
        depth: how many calls stand in one another where all of it is one expression.
        casts: see :class:`patchkit.rewrite.sites.Site`.
    """

    input: str | None
    calls: tuple[ProjectionCall, ...]
    drop: frozenset[int]
    gate_first: bool
    passed_over: tuple[str, ...]
    given: tuple[cst.Arg, ...] = ()
    depth: int = 0
    casts: bool = False

    @property
    def order(self) -> tuple[tuple[str, ...], bool]:
        """What ``apply_mlp`` has to know, and can know only once for a class."""
        return tuple(call.name for call in self.calls), self.gate_first


class NoMatchError(Exception):
    """The dataflow is another one; carries the :class:`Obstacle`."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle.text)
        self.obstacle = obstacle


Matches = Callable[[ProjectionCall], Match]
"""Compares what one call of down is given with a form; raises :class:`NoMatchError` if it has another one."""


def plan_mlp(
    method: ParsedMethod, block: GatedMLP | MLP, part: Part, edits: Edits, form: str, rule: RuleName, matches: Matches
) -> None:
    """Rewrite every occurrence of an MLP, and say why others are left.

    Args:
        method: the method.
        block: the block.
        part: see :data:`patchkit.arch.spec.Part`.
        edits: what is to be done.
        form: what the rule looks for, for messages: ``a gated MLP``.
        rule: its name.
        matches: what one call of the down projection ends.
    """
    calls = edits.untaken(method.calls_of(*block.projections(part)))
    downs = [call for call in calls if call.name == block.down]
    if not downs:
        reason = f"not {form}: {method.quote_of_self(block.down)} is not called"
        edits.leave(calls, part, reason, method.line(calls[0].node))
    first: Match | None = None
    for down in downs:
        try:
            match = matches(down)
            first = first or match
            if match.order != first.order:
                text = f"{method.quote(down.node)} takes gate and up in another order than the MLP above it"
                raise NoMatchError(Obstacle(text, method.line(down.node)))
        except NoMatchError as error:
            edits.leave([down], part, f"not {form}: {error.obstacle.text}", error.obstacle.line)
        else:
            _replace(method, block, part, down, match, edits, rule)


def _replace(
    method: ParsedMethod,
    block: GatedMLP | MLP,
    part: Part,
    down: ProjectionCall,
    match: Match,
    edits: Edits,
    rule: RuleName,
) -> None:
    edits.replace[down.node] = partial(_as_mlp, method, match, block.activation_function)
    place = place_of(method, down.node)
    if place is not None:
        lines = statements(place.suite)
        edits.drop.update(lines[index] for index in match.drop)
    order, gate_first = match.order
    line = method.line(match.calls[0].node)
    edits.take(match.calls, Site(part, rule, line, order, gate_first, match.passed_over, match.casts))


def _as_mlp(method: ParsedMethod, match: Match, function: str | None, node: cst.Call) -> cst.BaseExpression:
    given = cst.parse_expression(match.input) if match.input else _innermost_argument(node, match)
    arguments = [cst.Arg(given), *([cst.Arg(cst.parse_expression(function))] if function else []), *match.given]
    comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    listed = [*(one.with_changes(comma=comma) for one in arguments[:-1]), arguments[-1]]
    return in_parentheses_of(cst.Call(method.attribute_of_self(METHOD), listed), node)


def _innermost_argument(node: cst.Call, match: Match) -> cst.BaseExpression:
    """What the first of calls that stand in one another is given, in which inner calls were replaced already."""
    given: cst.BaseExpression = node
    for _ in range(match.depth):
        given = cst.ensure_type(given, cst.Call).args[0].value
    return given


class Matcher:
    """The dataflow that leads to one call of the down projection, step by step."""

    def __init__(self, method: ParsedMethod, block: GatedMLP | MLP, down: ProjectionCall) -> None:
        self.method, self.block, self.down = method, block, down
        self.place = place_of(method, down.node)
        self.temporaries = Temporaries(method, self.place)
        self.sources: list[ProjectionCall] = []
        """The calls that read the input."""
        self.activations: list[ProjectionCall] = []
        """The call of the activation."""
        self.given: tuple[cst.Arg, ...] = ()
        """See :class:`Match`."""
        self.drops = self.casts = False

    def given_to_down(self) -> Value:
        """What the down projection is given, before dropout and a cast.

        Raises:
            NoMatchError: its call cannot be rewritten.
        """
        if why := self.method.why_not_rewritable(self.down):
            raise NoMatchError(Obstacle(why, self.method.line(self.down.node)))
        assert self.down.argument is not None
        index = self.place.index if self.place else 0
        value = self.temporaries.follow(self.down.argument, self._past_cast(self.down.argument, index))
        found = None if value.part is not None else dropout_of(self.method, self.block, value.expression)
        if found is None:
            return value
        dropout, before = found
        self.given, self.drops = (*dropout, *self.given), True
        return self.temporaries.follow(before, value.index)

    def _past_cast(self, read: cst.BaseExpression, index: int) -> int:
        """Where to go on in following a variable, if a conditional cast of it stands right above."""
        if not isinstance(read, cst.Name) or self.place is None:
            return index
        bound = self.temporaries.last_binding(read.value, index)
        if bound is None:
            return index
        statement = self.temporaries.statements()[bound]
        exceptions = exceptions_of_cast(self.method, statement, read.value, self.block.down)
        if exceptions is None:
            return index
        self.casts = True
        self.temporaries.pass_over(read, bound)
        listed = "".join(f"{one}, " for one in exceptions)
        self.given = (named("cast_unless", cst.parse_expression(f"({listed.rstrip()})")),)
        return bound

    def is_activated(self, value: Value) -> bool:
        """Whether a value is what the activation returns."""
        node = value.expression
        if not isinstance(node, cst.Call) or value.part is not None:
            return False
        function = self.block.activation_function
        if function is None:
            return self.method.self_attribute(node.func) == self.block.activation
        return is_global(self.method, node.func, function)

    def follow_activation(self, value: Value) -> Value:
        """What the activation is given, of a value that it returns.

        Raises:
            NoMatchError: it is given something else too.
        """
        call = cst.ensure_type(value.expression, cst.Call)
        before = one_positional(call)
        if before is None:
            self.fail(value)
        name = self.block.activation_function or self.block.activation
        self.activations.append(ProjectionCall(name, call, before, self.method.is_nested(call)))
        return self.temporaries.follow(before, value.index)

    def match_projection(self, value: Value, name: str) -> ProjectionCall:
        """Match a call of a projection.

        Raises:
            NoMatchError: it is something else.
        """
        call = next((call for call in self.method.calls_of(name) if call.node is value.expression), None)
        if call is None or value.part is not None:
            self.fail(value)
        return call

    def match_source(self, value: Value, name: str) -> None:
        """Match a call of a projection on the variable that is the input of the block.

        Raises:
            NoMatchError: it is something else, or reads something else.
        """
        self.sources.append(self.match_projection(value, name))
        first, last = self._variable(self.sources[0]), self._variable(self.sources[-1])
        if first != last:
            text = f"takes another input than {self.method.quote(self.sources[0].node)}"
            raise NoMatchError(self.obstacle(self.sources[-1].node, text))

    def _variable(self, source: ProjectionCall) -> str:
        """The variable that a call reads.

        Raises:
            NoMatchError: it reads something else.
        """
        if not isinstance(source.argument, cst.Name):
            raise NoMatchError(self.obstacle(source.node, "takes something else than a variable"))
        return source.argument.value

    def result(self, gate_first: bool = True) -> Match:
        """The match, once every projection is found.

        Raises:
            NoMatchError: something in between could see that calls are moved.
        """
        drop = frozenset(self.temporaries.definitions)
        variable = self._variable(self.sources[0]) if drop else None
        over: tuple[str, ...] = ()
        if self.place is not None and variable:
            kept = self._kept(self.place, drop)
            why = self._why_not_movable(kept, variable)
            if why is not None:
                raise NoMatchError(why)
            over = passed_over(self.method, kept, {self.down.node})
        calls = [self.down, *self.activations, *self.sources]
        in_order = tuple(sorted(calls, key=lambda call: end_of(self.method.range(call.node))))
        given = self.sources[0].argument
        name = given.value if isinstance(given, cst.Name) else None
        return Match(name, in_order, drop, gate_first, over, self.given, len(calls) + self.drops, self.casts)

    def _kept(self, place: Place, drop: frozenset[int]) -> list[Statement]:
        """The statements from the first temporary to the down projection, without the temporaries."""
        lines = statements(place.suite)
        return [lines[index] for index in range(min(drop), place.index + 1) if index not in drop]

    def _why_not_movable(self, kept: list[Statement], name: str) -> Obstacle | None:
        """Why the calls cannot be evaluated where the down projection stands, without the temporaries.

        That gate, up and the new call read the same value of the input follows: a statement that stays must not bind
        it, and a read of what a temporary gave to it is a read that was not followed.
        """
        temporaries = self.temporaries
        for variable in sorted({name}.union(*temporaries.definitions.values())):
            if why := why_not_private(self.method, variable):
                return why
        if why := temporaries.why_not_droppable():
            return why
        # The rule for gated ones takes calls around down for obstacles, and its proofs are of the text that it leaves.
        around = () if isinstance(self.block, GatedMLP) else tuple(self.method.ancestors(self.down.node))
        return why_not_movable(self.method, kept, {self.down.node}, name, around)

    def is_call(self, value: Value, *names: str) -> bool:
        """Whether a value is what a call of one of these attributes of self returns."""
        node = value.expression
        return isinstance(node, cst.Call) and value.part is None and self.method.self_attribute(node.func) in names

    def obstacle(self, node: cst.CSTNode, text: str) -> Obstacle:
        """An obstacle that quotes a node."""
        return Obstacle(f"{self.method.quote(node)} {text}", self.method.line(node))

    def fail(self, value: Value) -> NoReturn:
        """Say what stands where the dataflow differs.

        Raises:
            NoMatchError: always.
        """
        if value.part is not None:
            raise NoMatchError(self.obstacle(self.temporaries.statements()[value.index], "stands in between"))
        if isinstance(value.expression, cst.Name):
            raise NoMatchError(self.temporaries.why_unfollowed(value.expression, value.index))
        raise NoMatchError(self.obstacle(value.expression, "stands in between"))
