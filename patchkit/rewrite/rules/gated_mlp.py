"""A gated MLP: ``down(activation(gate(x)) * up(x))``, in however many statements it is written.

The call of down becomes ``self.apply_mlp(x)`` and the assignments to temporaries go. That moves calls down to where
down stood, so nothing in between may be able to see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import libcst as cst

from patchkit.arch.spec import Block, GatedMLP, Part
from patchkit.rewrite.dataflow import Temporaries, Value
from patchkit.rewrite.edits import Edits, in_parentheses_of
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall, one_positional
from patchkit.rewrite.passed_over import passed_over
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site
from patchkit.rewrite.straight_line import (
    Obstacle,
    Place,
    Statement,
    place_of,
    statements,
    why_not_movable,
    why_not_private,
)

VALID = (
    ("return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))", "return self.apply_mlp(x)"),
    (
        "up = self.up_proj(x)\nup = up * self.act_fn(self.gate_proj(x))\nreturn y + self.down_proj(up)",
        "return y + self.apply_mlp(x)",
    ),
    ("x = self.act_fn(self.gate_proj(x)) * self.up_proj(x)\nx = self.down_proj(x)", "x = self.apply_mlp(x)"),
)

INVALID = (
    ("return self.down_proj(self.drop(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))", "`self.drop("),
    ("return self.down_proj(self.act_fn(2 * self.gate_proj(x)) * self.up_proj(x))", "`2 * self.gate_proj(x)`"),
    ("return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(y))", "another input"),
    ("h = self.act_fn(self.gate_proj(x)) * self.up_proj(x)\nreturn self.down_proj(h), h", "is used elsewhere, too"),
    ("g = self.gate_proj(x)\nx = y\nreturn self.down_proj(self.act_fn(g) * self.up_proj(x))", "is bound again"),
    ("g = self.gate_proj(x)\ng *= 2\nreturn self.down_proj(self.act_fn(g) * self.up_proj(x))", "`g *= 2`"),
    ("return self.act_fn(self.gate_proj(x)) * self.up_proj(x)", "`self.down_proj` is not called"),
    (
        "return self.down_proj(self.act_fn(self.gate_proj(x + y)) * self.up_proj(x))",
        "takes something else than a variable",
    ),
    ("g, z = self.gate_proj(x), y\nreturn self.down_proj(self.act_fn(g) * self.up_proj(x))", "also computes `z`"),
)


@dataclass(frozen=True)
class _Match:
    """A gated MLP.

    Attributes:
        input: the variable that is its input.
        calls: the calls of its projections and of its activation, in upstream's order.
        drop: positions of the assignments to temporaries, which are no longer needed.
        gate_first: see :class:`patchkit.rewrite.sites.Site`; likewise ``passed_over``.
    """

    input: str
    calls: tuple[ProjectionCall, ...]
    drop: frozenset[int]
    gate_first: bool
    passed_over: tuple[str, ...]

    @property
    def order(self) -> tuple[tuple[str, ...], bool]:
        """What ``apply_mlp`` has to know, and can know only once for a class."""
        return tuple(call.name for call in self.calls), self.gate_first


class _NoMatchError(Exception):
    """The dataflow is another one; carries the :class:`Obstacle`."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle.text)
        self.obstacle = obstacle


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    assert isinstance(block, GatedMLP)  # no other block has this part
    calls = edits.untaken(method.calls_of(*block.projections(part)))
    downs = [call for call in calls if call.name == block.down]
    if not downs:
        reason = f"not a gated MLP: {method.quote_of_self(block.down)} is not called"
        edits.leave(calls, part, reason, method.line(calls[0].node))
    first: _Match | None = None
    for down in downs:
        try:
            match = _Matcher(method, block, down).match()
            first = first or match
            if match.order != first.order:
                text = f"{method.quote(down.node)} takes gate and up in another order than the MLP above it"
                raise _NoMatchError(Obstacle(text, method.line(down.node)))
        except _NoMatchError as error:
            edits.leave([down], part, f"not a gated MLP: {error.obstacle.text}", error.obstacle.line)
        else:
            _replace(method, part, down, match, edits)


def _replace(method: ParsedMethod, part: Part, down: ProjectionCall, match: _Match, edits: Edits) -> None:
    new = cst.parse_expression(f"{method.self_name}.{RULE.method}({match.input})")
    edits.replace[down.node] = partial(in_parentheses_of, new)
    place = place_of(method, down.node)
    if place is not None:
        lines = statements(place.suite)
        edits.drop.update(lines[index] for index in match.drop)
    order, gate_first = match.order
    line = method.line(match.calls[0].node)
    edits.take(match.calls, Site(part, RULE.name, line, order, gate_first, match.passed_over))


class _Matcher:
    """Compares what one call of down is given with what a gated MLP gives it."""

    def __init__(self, method: ParsedMethod, block: GatedMLP, down: ProjectionCall) -> None:
        self.method, self.block, self.down = method, block, down
        self.place = place_of(method, down.node)
        self.temporaries = Temporaries(method, self.place)
        self.sources: list[ProjectionCall] = []
        """The calls that read the input."""
        self.activations: list[cst.CSTNode] = []
        """The call of the activation."""

    def match(self) -> _Match:
        """The gated MLP.

        Raises:
            _NoMatchError: it is none.
        """
        if why := self.method.why_not_rewritable(self.down):
            raise _NoMatchError(Obstacle(why, self.method.line(self.down.node)))
        assert self.down.argument is not None
        product = self.temporaries.follow(self.down.argument, self.place.index if self.place else 0)
        factors = self._factors(product)
        activated = [factor for factor in factors if self._is_call(factor, self.block.activation)]
        if not activated:
            others = [factor for factor in factors if not self._is_call(factor, *self.block.inputs)]
            # Of more than two factors, show all.
            more = others and isinstance(others[0].expression, cst.BinaryOperation)
            self._fail(others[0] if others and not more else product)
        self.activations.append(activated[0].expression)
        before = one_positional(cst.ensure_type(activated[0].expression, cst.Call))
        if before is None:
            self._fail(activated[0])
        gate = self.temporaries.follow(before, activated[0].index)
        up = factors[1] if activated[0] is factors[0] else factors[0]
        gate_first = True
        if self.block.gate_up:
            gate_first = self._match_halves(gate, up, self.block.gate_up)
        else:
            self._match_projection(gate, self.block.gate)
            self._match_projection(up, self.block.up)
        return self._result(gate_first)

    def _factors(self, product: Value) -> list[Value]:
        expression = product.expression
        if (
            product.part is not None
            or not isinstance(expression, cst.BinaryOperation)
            or not isinstance(expression.operator, cst.Multiply)
        ):
            self._fail(product)
        return [self.temporaries.follow(side, product.index) for side in (expression.left, expression.right)]

    def _match_halves(self, gate: Value, up: Value, name: str) -> bool:
        """Match the two halves of what projection ``name`` gives; whether the first of them is the gate."""
        (gate_pair, gate_part), (up_pair, up_part) = self._half(gate), self._half(up)
        if gate_pair.expression is not up_pair.expression or gate_part == up_part:
            self._fail(up)
        whole = _split_in_two(gate_pair.expression)
        if whole is None or gate_pair.part is not None:
            self._fail(gate_pair)
        self._match_projection(self.temporaries.follow(whole, gate_pair.index), name)
        return gate_part == 0

    def _half(self, value: Value) -> tuple[Value, int]:
        """The pair that a value is half of, and which half: by unpacking, or by subscript."""
        if value.part is not None:
            return self.temporaries.follow(value.expression, value.index), value.part
        if isinstance(value.expression, cst.Subscript) and len(value.expression.slice) == 1:
            index = value.expression.slice[0].slice
            part = _integer(index.value) if isinstance(index, cst.Index) else None
            if part in (0, 1):
                return self.temporaries.follow(value.expression.value, value.index), part
        self._fail(value)

    def _match_projection(self, value: Value, name: str) -> None:
        """Match a call of a projection, on the variable that is the input of the block."""
        call = next((call for call in self.method.calls_of(name) if call.node is value.expression), None)
        if call is None or value.part is not None:
            self._fail(value)
        if not isinstance(call.argument, cst.Name):
            raise _NoMatchError(self._obstacle(call.node, "takes something else than a variable"))
        for other in self.sources:
            if cst.ensure_type(other.argument, cst.Name).value != call.argument.value:
                text = f"takes another input than {self.method.quote(other.node)}"
                raise _NoMatchError(self._obstacle(call.node, text))
        self.sources.append(call)

    def _result(self, gate_first: bool) -> _Match:
        name = cst.ensure_type(self.sources[0].argument, cst.Name).value
        drop = frozenset(self.temporaries.definitions)
        over: tuple[str, ...] = ()
        if self.place is not None and drop:
            kept = self._kept(self.place, drop)
            why = self._why_not_movable(kept, name)
            if why is not None:
                raise _NoMatchError(why)
            over = passed_over(self.method, kept, {self.down.node})
        nodes = {self.down.node, *self.activations, *(call.node for call in self.sources)}
        return _Match(name, tuple(call for call in self.method.calls if call.node in nodes), drop, gate_first, over)

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
        return why_not_movable(self.method, kept, {self.down.node}, name)

    def _is_call(self, value: Value, *names: str) -> bool:
        """Whether a value is what a call of one of these attributes of self returns."""
        node = value.expression
        return isinstance(node, cst.Call) and value.part is None and self.method.self_attribute(node.func) in names

    def _obstacle(self, node: cst.CSTNode, text: str) -> Obstacle:
        return Obstacle(f"{self.method.quote(node)} {text}", self.method.line(node))

    def _fail(self, value: Value) -> NoReturn:
        """Say what stands where the dataflow differs."""
        if value.part is not None:
            raise _NoMatchError(self._obstacle(self.temporaries.statements()[value.index], "stands in between"))
        if isinstance(value.expression, cst.Name):
            raise _NoMatchError(self.temporaries.why_unfollowed(value.expression, value.index))
        raise _NoMatchError(self._obstacle(value.expression, "stands in between"))


def _split_in_two(expression: cst.BaseExpression) -> cst.BaseExpression | None:
    """``t`` if the expression is ``t.chunk(2, dim=-1)`` or ``torch.chunk(t, 2, dim=-1)``, else None."""
    if not (isinstance(expression, cst.Call) and isinstance(expression.func, cst.Attribute)):
        return None
    owner, arguments = expression.func.value, list(expression.args)
    if expression.func.attr.value != "chunk":
        return None
    if isinstance(owner, cst.Name) and owner.value == "torch" and arguments and arguments[0].keyword is None:
        owner = arguments.pop(0).value
    names = [argument.keyword.value if argument.keyword else None for argument in arguments]
    if len(names) != 2 or names[0] not in (None, "chunks") or names[1] not in (None, "dim"):
        return None
    return owner if [_integer(argument.value) for argument in arguments] == [2, -1] else None


def _integer(expression: cst.BaseExpression) -> int | None:
    """The value of an integer literal, with or without a minus."""
    if isinstance(expression, cst.UnaryOperation) and isinstance(expression.operator, cst.Minus):
        inner = _integer(expression.expression)
        return None if inner is None else -inner
    return int(expression.value, 0) if isinstance(expression, cst.Integer) else None


def _arguments(block: Block, site: Site) -> dict[str, Any]:
    assert isinstance(block, GatedMLP)
    return {
        "inputs": block.inputs,
        "down": block.down,
        "activation": block.activation,
        "order": site.calls,
        "gate_first": site.gate_first,
    }


RULE = Rule(
    name="gated-mlp",
    parts=("mlp",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method="apply_mlp",
    arguments=_arguments,
)
