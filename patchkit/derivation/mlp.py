"""An MLP, recognised by its structure: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))``, whatever the names.

What down is given may go through dropout.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeGuard

from patchkit.arch.spec import MLP, GatedMLP
from patchkit.derivation.attributes import Attributes
from patchkit.derivation.flow import Applied, Called, Clamped, Dropped, Half, Product, Value

_NO_ACTIVATION = re.compile(r"norm|drop|softmax|checkpoint|conv|linear|pool")
"""Parts of the names of functions that are no activation."""


class _Activated(NamedTuple):
    """What an activation gives: the words of the description that name it, the call, and what it is given.

    And the attribute by which that was clamped from above, if it was.
    """

    words: dict[str, str]
    call: Value
    argument: Called | Half
    limit: str | None = None


class _Found(NamedTuple):
    """An MLP, and the calls that it is made of."""

    block: GatedMLP | MLP
    calls: tuple[Called, ...]


def mlp_of(class_name: str, calls: Sequence[Called], attributes: Attributes) -> GatedMLP | MLP | str:
    """Describe a class as an MLP, or say why it is none. Of several that are not alike, a gated one, or the first.

    Args:
        class_name: its name.
        calls: what its ``forward`` calls.
        attributes: what its attributes are.
    """
    projections = [call for call in calls if attributes.may_be_projection(call.name)]
    found, whys = [], []
    for call in projections:
        if call.argument is None or call.nested or not _projections_in(call.argument, projections):
            continue
        hidden, words = _before_dropout(call.argument)
        form = _gated(call, hidden, attributes) or _ungated(call, hidden, attributes)
        if form is None:
            whys.append(f"`{call.name}` is given {_quoted(call.argument)}: neither act(gate(x)) * up(x) nor act(up(x))")
        elif isinstance(form, str):
            whys.append(form)
        elif any(other.suite != call.suite for other in form.calls):
            whys.append(f"{_names(form.calls)} are called in different branches")
        else:
            block = replace(form.block, **words)  # type: ignore[arg-type]
            found.append(form._replace(block=block))
    for form in sorted(found, key=lambda form: not isinstance(form.block, GatedMLP)):
        why = _why_elsewhere(form, found, projections)
        if why is None:
            return replace(form.block, class_name=class_name)
        whys.insert(0, why)
    return whys[0] if whys else "no projection is given what is computed from another one"


def _before_dropout(value: Value) -> tuple[Value, dict[str, str]]:
    """What dropout is given, if a value is what dropout gives, and the words of the description that name it."""
    if isinstance(value, Called) and "drop" in value.name.lower() and value.argument is not None and not value.nested:
        return value.argument, {"dropout": value.name}
    if isinstance(value, Dropped):
        return value.argument, {"dropout_function": value.function}
    return value, {}


def _projections_in(value: Value, projections: Iterable[Called]) -> bool:
    return not value.origins.isdisjoint(call.name for call in projections)


def _why_elsewhere(form: _Found, found: Iterable[_Found], projections: Iterable[Called]) -> str | None:
    """Why the projections of an MLP are called elsewhere too, or None if every call is part of an MLP like it."""
    names = {call.name for call in form.calls}
    alike = {id(call) for other in found if other.block == form.block for call in other.calls}
    elsewhere = [call.name for call in projections if call.name in names and id(call) not in alike]
    return f"`{elsewhere[0]}` is called elsewhere, too" if elsewhere else None


def _gated(down: Called, value: Value, attributes: Attributes) -> _Found | str | None:
    """A gated MLP, or why it is not quite one; None if it has nothing of one."""
    if not isinstance(value, Product):
        return None
    activated = [found for one in value.factors if (found := _activated(one, attributes))]
    if len(activated) != 1:
        return None
    (gate,) = activated
    up = value.factors[1] if gate.call is value.factors[0] else value.factors[0]
    limit = None
    if isinstance(up, Clamped) and up.from_both_sides:
        limit, up = up.limit, up.argument
    if limit != gate.limit:
        return None
    if limit is not None:
        gate = gate._replace(words={**gate.words, "limit": limit})
    if isinstance(gate.argument, Half) and isinstance(up, Half):
        return _gated_by_halves(down, gate, gate.argument, up, attributes)
    if isinstance(gate.argument, Half) or not _is_projection(up, attributes):
        return None
    if len({gate.argument.name, up.name, down.name}) < 3:
        return f"`{up.name}` is called for more than one of gate, up and down"
    if gate.argument.argument is not up.argument or not up.variable or not gate.argument.variable:
        return f"{_names((gate.argument, up))} do not read one variable"
    block = GatedMLP("", gate=gate.argument.name, up=up.name, down=down.name, **gate.words)  # type: ignore[arg-type]
    return _Found(block, (gate.argument, up, down))


def _gated_by_halves(
    down: Called, activated: _Activated, gate: Half, up: Half, attributes: Attributes
) -> _Found | str | None:
    whole = up.halves.whole
    if gate.halves is not up.halves or gate.index == up.index:
        return "gate and up are not the two halves of one value"
    if not _is_projection(whole, attributes):
        return None
    if whole.name == down.name or not whole.variable:
        return f"`{whole.name}` does not read a variable"
    block = GatedMLP("", gate_up=whole.name, down=down.name, **activated.words)  # type: ignore[arg-type]
    return _Found(block, (whole, down))


def _ungated(down: Called, value: Value, attributes: Attributes) -> _Found | str | None:
    activated = _activated(value, attributes)
    if activated is None or not isinstance(activated.argument, Called) or activated.limit is not None:
        return None
    up = activated.argument
    if up.name == down.name:
        return f"`{up.name}` is called for both up and down"
    block = MLP("", up=up.name, down=down.name, **activated.words)  # type: ignore[arg-type]
    return _Found(block, (up, down))


def _is_projection(value: Value, attributes: Attributes) -> TypeGuard[Called]:
    return (
        isinstance(value, Called)
        and attributes.may_be_projection(value.name)
        and value.argument is not None
        and not value.nested
    )


def _activated(value: Value, attributes: Attributes) -> _Activated | None:
    """What a value is if an activation gives it for a projection, or half of one: a module, or a global function."""
    if isinstance(value, Called) and not value.nested and attributes.may_be_activation(value.name):
        words = {"activation": value.name}
    elif isinstance(value, Applied) and not _NO_ACTIVATION.search(value.function.lower()):
        words = {"activation_function": value.function}
    else:
        return None
    argument, limit = value.argument, None
    if isinstance(argument, Clamped) and not argument.from_both_sides:
        limit, argument = argument.limit, argument.argument
    if isinstance(argument, Half) or (argument is not None and _is_projection(argument, attributes)):
        return _Activated(words, value, argument, limit)
    return None


def _names(calls: Iterable[Called]) -> str:
    return " and ".join(f"`{call.name}`" for call in calls)


def _quoted(value: Value) -> str:
    if value.written is None:
        return "something that is not computed in a straight line"
    code = " ".join(ast.unparse(value.written).split())
    return f"`{code}`" if len(code) <= 100 else f"`{code[:97]}...`"
