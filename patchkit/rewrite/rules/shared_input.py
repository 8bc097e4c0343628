"""Linear layers of one input in one call: ``k, v = self.apply_shared(x, self.k_proj, self.v_proj)``.

They are passed in the order in which upstream calls them, and stand for what :mod:`patchkit.rewrite.together` says. A
class may have several such groups.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Sequence
from typing import Any

import libcst as cst

from patchkit.arch.spec import Block, Part, SharedInput
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall, end_of
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site
from patchkit.rewrite.straight_line import Obstacle, place_of
from patchkit.rewrite.together import put_together, why_not_together

VALID = (
    (
        "return self.k_proj(x).view(s), self.k_norm(self.v_proj(x))",
        "k, v = self.apply_shared(x, self.k_proj, self.v_proj)\nreturn k.view(s), self.k_norm(v)",
    ),
    (
        "q = self.q_proj(x)\nv = self.v_proj(y)\nk = self.k_proj(y)",
        "q = self.q_proj(x)\nv_2, k_2 = self.apply_shared(y, self.v_proj, self.k_proj)\nv = v_2\nk = k_2",
    ),
    (
        "if x is None:\n    return self.cached\nreturn f(self.k_proj(y), self.v_proj(y))",
        "if x is None:\n    return self.cached\nk, v = self.apply_shared(y, self.k_proj, self.v_proj)\nreturn f(k, v)",
    ),
    (
        "return self.drop(self.k_proj(x) * self.act(self.v_proj(x) * y))",
        "k, v = self.apply_shared(x, self.k_proj, self.v_proj)\nreturn self.drop(k * self.act(v * y))",
    ),
)

INVALID = (
    ("a = self.k_proj(x), self.v_proj(y)", "`self.v_proj(y)` takes another input than"),
    ("a = self.k_proj(x)\nif y:\n    b = self.v_proj(x)", "stand in different blocks"),
    ("a = self.k_proj(x)\nx = x + 1\nb = self.v_proj(x)", "`x` is bound again in between"),
    ("a = self.k_proj(x)\nb = self.q_proj(y)\nc = self.v_proj(x)", "may run another projection"),
    ("return self.act(self.k_proj(x)) * self.v_proj(x)", "may run another module"),
    ("a = self.k_proj(x)\nb = self.dropout(y)\nc = self.v_proj(x)", "may draw random numbers"),
    ("a = self.v_proj(self.k_norm(self.k_proj(x)))", "takes another input than"),
    ("a = self.k_proj(x), (self.v_proj(x) if y else None)", "is evaluated conditionally"),
    ("a = [self.k_proj(x) for x in y], self.v_proj(x)", "is evaluated conditionally"),
    ("a = self.k_proj(x)", "`self.v_proj` is not called"),
    ("a = self.k_proj(x), self.v_proj(x), self.v_proj(x)", "`self.v_proj` is called 2 times"),
    ("try:\n    a = self.k_proj(x), self.v_proj(x)\nfinally:\n    pass", "stand in a `try` statement"),
    ("return map(lambda x: self.k_proj(x), y), self.v_proj(x)", "`self.k_proj(x)` stands in a nested function"),
)


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    assert isinstance(block, SharedInput)
    for group in block.groups:
        calls = edits.untaken(method.calls_of(*group))
        if not calls:
            edits.leave((), part, f"absent: {method.quote_of_self(*group)} is never called")
            continue
        others = [call for call in method.calls_of(*block.projections()) if call.name not in group]
        obstacle = why_not_together(method, group, calls, within_calls=True) or _why_crowded(
            method, calls, others, edits
        )
        if obstacle is None:
            _put_together(method, part, calls, edits)
        else:
            edits.leave(calls, part, f"not together: {obstacle.text}", obstacle.line)


def _why_crowded(
    method: ParsedMethod, calls: Sequence[ProjectionCall], others: Iterable[ProjectionCall], edits: Edits
) -> Obstacle | None:
    """Why other groups are in the way of calls that can be put together, or None if none is.

    Each layer of a group draws, whatever it is called, and before a statement stands one group at most.
    """
    first, last = (end_of(method.range(call.node)) for call in (calls[0], calls[-1]))
    for other in others:
        if first < end_of(method.range(other.node)) < last:
            text = f"{method.quote(other.node)} stands between and is a layer of another group"
            return Obstacle(text, method.line(other.node))
    place = place_of(method, calls[0].node)
    if place is not None and place.statement in edits.insert:
        text = f"{method.quote(place.statement)} calls another group, too"
        return Obstacle(text, method.line(calls[0].node))
    return None


def _put_together(method: ParsedMethod, part: Part, calls: tuple[ProjectionCall, ...], edits: Edits) -> None:
    order = tuple(call.name for call in calls)
    variables = _variables(method, order, edits)
    argument = cst.ensure_type(calls[0].argument, cst.Name).value
    given = ", ".join([argument, *(f"{method.self_name}.{name}" for name in order)])
    code = f"{', '.join(variables.values())} = {method.self_name}.{RULE.method}({given})"
    over = put_together(method, calls, code, variables, edits)
    edits.take(calls, Site(part, RULE.name, method.line(calls[0].node), order, passed_over=over))


_IS_A_LAYER = re.compile(r"_?(proj|projection|linear|layer)(?=_|$)|^(linear|proj|to)_", re.IGNORECASE)
"""What the name of a layer says besides what it makes: ``k_proj``, ``linear_k``, ``to_k``."""


def _variables(method: ParsedMethod, names: Iterable[str], edits: Edits) -> dict[str, str]:
    """A variable for what each layer gives, named after it, of names that occur nowhere else in the new method."""
    used = {name.value for name in method.names}
    used.update(name for statement in edits.insert.values() for name in _bound_by(statement))
    short = {name: _IS_A_LAYER.sub("", name).strip("_") for name in names}
    plain = len(set(short.values())) == len(short) and all(
        one.isidentifier() and not keyword.iskeyword(one) for one in short.values()
    )
    chosen = short if plain else {name: name for name in short}
    suffix, number = "", 1
    while not used.isdisjoint(f"{one}{suffix}" for one in chosen.values()):
        number += 1
        suffix = f"_{number}"
    return {name: f"{one}{suffix}" for name, one in chosen.items()}


def _bound_by(statement: cst.BaseSmallStatement) -> list[str]:
    """The variables that a statement of another group binds."""
    assign = cst.ensure_type(statement, cst.Assign)
    target = cst.ensure_type(assign.targets[0].target, cst.Tuple)
    return [cst.ensure_type(element.value, cst.Name).value for element in target.elements]


def _arguments(block: Block, site: Site) -> dict[str, Any]:
    return {}


RULE = Rule(
    name="shared-input",
    parts=("linear",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method="apply_shared",
    arguments=_arguments,
    blocks=(SharedInput,),
)
