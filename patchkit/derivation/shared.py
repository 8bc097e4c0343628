"""Linear layers that are given one variable, recognised by that alone: whatever they are called and used for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from patchkit.arch.spec import SharedInput
from patchkit.derivation.attributes import Attributes
from patchkit.derivation.flow import Called


def of_one_variable(projections: Sequence[Called]) -> list[list[Called]]:
    """The projections that are given the same value of a variable in the same suite, each in the order of calls.

    One that is called more than once, or in a function within the method, is in none of them.
    """
    times = Counter(call.name for call in projections)
    groups: dict[tuple[int, int], list[Called]] = {}
    for call in projections:
        if call.argument is not None and call.variable and not call.nested and times[call.name] == 1:
            groups.setdefault((id(call.argument), call.suite), []).append(call)
    return list(groups.values())


def shared_input_of(class_name: str, calls: Sequence[Called], attributes: Attributes) -> SharedInput | None:
    """Describe the groups of layers of one variable in a class, each in the order of calls; None if there is none.

    Args:
        class_name: its name.
        calls: what its ``forward`` calls.
        attributes: what its attributes are.
    """
    groups = of_one_variable([call for call in calls if attributes.may_be_projection(call.name)])
    together = tuple(tuple(call.name for call in group) for group in groups if len(group) > 1)
    return SharedInput(class_name, together) if together else None
