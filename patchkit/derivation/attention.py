"""An attention, recognised by its structure: three projections of one variable, and one of what is made of the three.

Where exactly three read the variable and no name speaks, nothing but that counts: they are query, key and value in the
order of their calls. Names decide which is which, which of more than three are meant, and whether three without an
output projection are an attention. Three of which only some have such a name (the low-rank projections of MLA) are
none. Numbers never depend on it: the rewritten code puts each result where its call stood, and calls in upstream's
order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from patchkit.arch.spec import Attention
from patchkit.derivation.attributes import Attributes
from patchkit.derivation.flow import Called
from patchkit.derivation.shared import of_one_variable

_ROLES = {"q": "query|queries", "k": "key|keys", "v": "value|values|val"}
_WORDS = {role: re.compile(rf"^(w?{role}s?|{role}proj|{words})$") for role, words in _ROLES.items()}
"""A word of a name that says the role: ``q``, ``wq``, ``qs``, ``query``."""

_JOINT = re.compile(r"(^|_)w?qkv(_|$)|query_key_value|^c_attn$")
"""A name that says that query, key and value are made by one projection."""


def attention_of(class_name: str, calls: Sequence[Called], attributes: Attributes) -> Attention | str:
    """Describe a class as an attention, or say why it is none.

    Args:
        class_name: its name.
        calls: what its ``forward`` calls.
        attributes: what its attributes are.
    """
    projections = [call for call in calls if attributes.may_be_projection(call.name)]
    together = [group for group in of_one_variable(projections) if len(group) >= 3]
    why = _why_not_together(projections, Counter(call.name for call in projections))
    for group in sorted(together, key=lambda group: _roles(group) is None):
        names = _roles(group)
        output = _output(projections, {call.name for call in group} if names is None else set(names))
        said = [call.name for call in group if any(_has_role(call.name, role) for role in _WORDS)]
        if names is None and output and len(group) == 3 and not said:
            names = group[0].name, group[1].name, group[2].name
        if names is not None:
            q, k, v = names
            return Attention(class_name, q=q, k=k, v=v, o=output)
        listed = ", ".join(f"`{call.name}`" for call in group)
        if said or len(group) > 3:
            why = f"{listed} read one variable, and their names do not say which are query, key and value"
        else:
            why = f"no projection is given what is computed from {listed}"
    return why


ONE_FOR_ALL = "one projection for q, k and v: no rule of qkv"
"""The reason for an attention of the usual joint form."""


def _why_not_together(projections: Iterable[Called], times: Counter[str]) -> str:
    """What speaks against those that would be query, key and value by their names, or against any."""
    projections = list(projections)
    named = {role: call for call in projections for role in _WORDS if _has_role(call.name, role)}
    if len({call.name for call in named.values()}) < len(_WORDS):
        joint = next((call.name for call in projections if _JOINT.search(call.name.lower())), None)
        return f"`{joint}` is {ONE_FOR_ALL}" if joint else "no three projections read one variable"
    first = named["q"]
    for call in named.values():
        if times[call.name] > 1:
            return f"`{call.name}` is called {times[call.name]} times"
        if call.nested:
            return f"`{call.name}` is called in a nested function"
        if call.argument is None or call.variable is None:
            return f"`{call.name}` is given something else than one variable"
        if call.suite != first.suite:
            return f"`{first.name}` and `{call.name}` are called in different branches"
        if call.argument is not first.argument:
            return f"`{first.name}` and `{call.name}` read different variables, or one that changes in between"
    return "no three projections read one variable"


def roles_said(name: str) -> frozenset[str]:
    """Which of ``q``, ``k`` and ``v`` a name of a projection says that it is; mostly one, or none."""
    return frozenset(role for role in _WORDS if _has_role(name, role))


def _has_role(name: str, role: str) -> bool:
    return any(_WORDS[role].match(word) for word in re.split(r"[_\d]+", name.lower()))


def _roles(group: Sequence[Called]) -> tuple[str, str, str] | None:
    """Query, key and value by their names; None unless each role is that of just one of them."""
    found = {role: [call.name for call in group if _has_role(call.name, role)] for role in _WORDS}
    if any(len(names) != 1 for names in found.values()) or len({names[0] for names in found.values()}) < len(found):
        return None
    return found["q"][0], found["k"][0], found["v"][0]


def _output(projections: Iterable[Called], inputs: set[str]) -> str | None:
    """The last projection that is given what is computed from all of these."""
    found = None
    for call in projections:
        if call.argument is not None and not call.nested and inputs <= call.argument.origins:
            found = call.name if call.name not in inputs else found
    return found
