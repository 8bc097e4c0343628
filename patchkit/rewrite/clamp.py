"""A clamp of gate or up by a limit that the object holds: ``gate.clamp(max=self.limit)``."""

from __future__ import annotations

from typing import NamedTuple

import libcst as cst

from patchkit.rewrite.parsed_method import ParsedMethod


class Clamp(NamedTuple):
    """A call of ``clamp``.

    Attributes:
        of: what is clamped.
        limit: the upper end, ``self.limit``.
        attribute: its name.
        from_both_sides: whether the lower end is ``-self.limit``; else there is none.
    """

    of: cst.BaseExpression
    limit: cst.BaseExpression
    attribute: str
    from_both_sides: bool


def clamp_of(method: ParsedMethod, node: cst.BaseExpression) -> Clamp | None:
    """The clamp that an expression is, or None."""
    if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute) or node.func.attr.value != "clamp":
        return None
    ends = {one.keyword.value: one.value for one in node.args if one.keyword is not None and not one.star}
    above, below = ends.get("max"), ends.get("min")
    if len(ends) != len(node.args) or not ends.keys() <= {"min", "max"} or above is None:
        return None
    attribute = method.self_attribute(above)
    if attribute is None:
        return None
    if below is None or (isinstance(below, cst.Name) and below.value == "None"):
        return Clamp(node.func.value, above, attribute, from_both_sides=False)
    if not isinstance(below, cst.UnaryOperation) or not isinstance(below.operator, cst.Minus):
        return None
    if method.self_attribute(below.expression) != attribute:
        return None
    return Clamp(node.func.value, above, attribute, from_both_sides=True)
