"""A gated MLP: ``down(activation(gate(x)) * up(x))``, in however many statements it is written.

The call of down becomes ``self.apply_mlp(x)``. Where the activation is a function and no module of the object, the new
code looks it up as upstream's does, and passes it on: ``self.apply_mlp(x, F.silu)``.
"""

from __future__ import annotations

from typing import Any

import libcst as cst

from patchkit.arch.spec import Block, GatedMLP, Part
from patchkit.rewrite.clamp import clamp_of
from patchkit.rewrite.dataflow import Value
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.global_calls import named
from patchkit.rewrite.mlp_match import METHOD, Match, Matcher, plan_mlp
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site

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


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    assert isinstance(block, GatedMLP)
    plan_mlp(
        method, block, part, edits, "a gated MLP", RULE.name, lambda down: _GatedMatcher(method, block, down).match()
    )


class _GatedMatcher(Matcher):
    """Compares what one call of down is given with what a gated MLP gives it."""

    def __init__(self, method: ParsedMethod, block: GatedMLP, down: ProjectionCall) -> None:
        super().__init__(method, block, down)
        self.gated = block

    def match(self) -> Match:
        """The gated MLP.

        Raises:
            NoMatchError: it is none.
        """
        product = self.given_to_down()
        factors = self._factors(product)
        activated = [factor for factor in factors if self.is_activated(factor)]
        if not activated:
            others = [factor for factor in factors if not self.is_call(factor, *self.gated.inputs)]
            # Of more than two factors, show all.
            more = others and isinstance(others[0].expression, cst.BinaryOperation)
            self.fail(others[0] if others and not more else product)
        gate = self._before_clamp(self.follow_activation(activated[0]), from_both_sides=False)
        up = self._before_clamp(factors[1] if activated[0] is factors[0] else factors[0], from_both_sides=True)
        gate_first = True
        if self.gated.gate_up:
            gate_first = self._match_halves(gate, up, self.gated.gate_up)
        else:
            self.match_source(gate, self.gated.gate)
            self.match_source(up, self.gated.up)
        return self.result(gate_first)

    def _before_clamp(self, value: Value, *, from_both_sides: bool) -> Value:
        """What is clamped to give a value, if gate and up have a limit; which is then looked up by the new call.

        Raises:
            NoMatchError: it is not clamped in that way.
        """
        name, node = self.gated.limit, value.expression
        if name is None:
            return value
        clamp = clamp_of(self.method, node) if value.part is None else None
        if clamp is None or clamp.attribute != name or clamp.from_both_sides != from_both_sides:
            self.fail(value)
        if not from_both_sides:
            self.given = (*self.given, named("limit", clamp.limit))
        return self.temporaries.follow(clamp.of, value.index)

    def _factors(self, product: Value) -> list[Value]:
        expression = product.expression
        if (
            product.part is not None
            or not isinstance(expression, cst.BinaryOperation)
            or not isinstance(expression.operator, cst.Multiply)
        ):
            self.fail(product)
        return [self.temporaries.follow(side, product.index) for side in (expression.left, expression.right)]

    def _match_halves(self, gate: Value, up: Value, name: str) -> bool:
        """Match the two halves of what projection ``name`` gives; whether the first of them is the gate."""
        (gate_pair, gate_part), (up_pair, up_part) = self._half(gate), self._half(up)
        if gate_pair.expression is not up_pair.expression or gate_part == up_part:
            self.fail(up)
        whole = _split_in_two(gate_pair.expression)
        if whole is None or gate_pair.part is not None:
            self.fail(gate_pair)
        self.match_source(self.temporaries.follow(whole, gate_pair.index), name)
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
        self.fail(value)


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
        "activation": block.activation_function or block.activation,
        "order": site.calls,
        "gate_first": site.gate_first,
        "limited": block.limit is not None,
    }


RULE = Rule(
    name="gated-mlp",
    parts=("mlp",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method=METHOD,
    arguments=_arguments,
    blocks=(GatedMLP,),
)
