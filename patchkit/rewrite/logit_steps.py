"""What a language model makes of its head's output before the loss: a scale, and a soft cap."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import libcst as cst

from patchkit.rewrite.global_calls import dotted, is_global
from patchkit.rewrite.parsed_method import ParsedMethod

_TANH = ("torch.tanh", "nn.functional.tanh", "F.tanh")

_CONFIGURATION = frozenset({"get_text_config"})
"""Methods without arguments of a configuration, which give a part of it."""


class UnknownStepError(Exception):
    """What is made of the logits is not known.

    Args:
        node: the code.
        why: in words that go on from a quotation of it.
    """

    def __init__(self, node: cst.CSTNode, why: str = "is not known") -> None:
        super().__init__(why)
        self.node, self.why = node, why


Step: TypeAlias = "cst.BaseExpression"
"""A number of the model, as the method computes it."""


@dataclass(frozen=True)
class _Done:
    """One step: ``*`` or ``/`` with a number, or ``tanh``; under a condition on a number, or not."""

    kind: str
    number: str
    node: cst.BaseExpression
    condition: str


@dataclass
class Steps:
    """The steps from the head's output on, in their order.

    Attributes:
        method: the method.
        logits: name of the variable.
    """

    method: ParsedMethod
    logits: str
    _done: list[_Done] = field(default_factory=list)
    _named: dict[str, cst.BaseExpression] = field(default_factory=dict)

    def number(self, expression: cst.BaseExpression) -> Step | None:
        """A number that a condition looks at; ``c := ...`` gives it a name. None if it is something else."""
        if isinstance(expression, cst.NamedExpr) and isinstance(expression.target, cst.Name):
            if not is_reading(self.method, expression.value):
                return None
            self._named[expression.target.value] = expression.value
            return expression.target
        return expression if is_reading(self.method, expression) else None

    def add(self, value: cst.BaseExpression, of: cst.BaseExpression | None, condition: Step | None) -> None:
        """Add the steps that an expression takes.

        Args:
            value: the expression.
            of: what it starts from: a node in it; None for the logits so far.
            condition: the number that is not None where these steps are taken.

        Raises:
            UnknownStepError: it takes others.
        """
        found: list[_Done] = []
        where = self._text(condition) if condition is not None else ""
        inner = value
        while not (inner is of or (of is None and dotted(inner) == self.logits)):
            kind, number, before = self._outermost(inner, value)
            if kind:
                found.append(_Done(kind, self._text(number) if number is not None else "", inner, where))
            inner = before
        self._done += found[::-1]

    def _outermost(
        self, node: cst.BaseExpression, whole: cst.BaseExpression
    ) -> tuple[str, cst.BaseExpression | None, cst.BaseExpression]:
        """The last step of an expression, its number, and what it is taken of; none for a cast to float32."""
        if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, (cst.Multiply, cst.Divide)):
            if self._is_number(node.right):
                return "*" if isinstance(node.operator, cst.Multiply) else "/", node.right, node.left
            if isinstance(node.operator, cst.Multiply) and self._is_number(node.left):
                return "*", node.left, node.right
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
            name, plain = node.func.attr.value, [one.value for one in node.args if one.keyword is None and not one.star]
            if name in ("float", "contiguous", "tanh") and not node.args:
                return name if name == "tanh" else "", None, node.func.value
            is_tanh = any(is_global(self.method, node.func, one) for one in _TANH)
            if is_tanh and len(plain) == len(node.args) == 1:
                return "tanh", None, plain[0]
        raise UnknownStepError(whole)

    def _is_number(self, node: cst.BaseExpression) -> bool:
        return dotted(node) != self.logits and is_reading(self.method, node)

    def _text(self, number: cst.BaseExpression) -> str:
        name = dotted(number)
        return self.method.module.code_for_node(self._named.get(name, number))

    def check(self) -> None:
        """Make sure that all steps together are a scale, a soft cap, or a scale and then a soft cap.

        Raises:
            UnknownStepError: they are not.
        """
        self.arguments()

    def arguments(self) -> dict[str, str]:
        """What ``apply_loss`` is to be given by name: ``multiplied`` or ``divided``, and ``softcap``; as code.

        Raises:
            UnknownStepError: as :meth:`check`.
        """
        done, found = list(self._done), {}
        if "tanh" in [one.kind for one in done]:
            cap = done[-3:]
            if [one.kind for one in cap] != ["/", "tanh", "*"] or len({(one.condition) for one in cap}) != 1:
                raise UnknownStepError(done[-1].node, "is not a soft cap as it is known")
            if cap[0].number != cap[2].number or cap[0].condition not in ("", cap[0].number):
                raise UnknownStepError(done[-1].node, "is not a soft cap as it is known")
            found["softcap"], done = cap[0].number, done[:-3]
        if len(done) > 1 or any(one.kind == "tanh" or one.condition not in ("", one.number) for one in done):
            raise UnknownStepError(done[-1].node)
        for one in done:
            found["multiplied" if one.kind == "*" else "divided"] = one.number
        return dict(sorted(found.items()))


def is_reading(method: ParsedMethod, expression: cst.BaseExpression) -> bool:
    """Whether an expression only reads a number, or the like, of the object or of its configuration.

    It may be evaluated at another time, and twice: ``self.config.vocab_size``, ``self.config.get_text_config().cap``,
    ``getattr(self.config, "cap", None)``, a number, or a variable that holds one.
    """
    if isinstance(expression, (cst.Integer, cst.Float)):
        return True
    if isinstance(expression, cst.Name):
        return expression.value in method.local_names
    if isinstance(expression, cst.Call) and dotted(expression.func) == "getattr":
        values = [one.value for one in expression.args]
        plain = len(values) == 3 and all(one.keyword is None and not one.star for one in expression.args)
        return plain and _is_path(method, values[0]) and isinstance(values[1], cst.SimpleString)
    return _is_path(method, expression)


def _is_path(method: ParsedMethod, expression: cst.BaseExpression) -> bool:
    """``self.a.b``, with calls of methods of a configuration in it."""
    while True:
        if isinstance(expression, cst.Attribute):
            if method.is_self(expression.value):
                return True
            expression = expression.value
        elif (
            isinstance(expression, cst.Call)
            and not expression.args
            and isinstance(expression.func, cst.Attribute)
            and expression.func.attr.value in _CONFIGURATION
        ):
            expression = expression.func.value
        else:
            return False
