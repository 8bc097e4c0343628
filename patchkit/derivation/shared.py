"""Linear layers that are given one variable, recognised by that alone: whatever they are called and used for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from patchkit.arch.spec import SharedInput
from patchkit.derivation.attributes import Attributes
from patchkit.derivation.flow import Called


def shared_input_of(class_name: str, calls: Sequence[Called], attributes: Attributes) -> SharedInput | None:
    """Describe the groups of layers of one variable in a class, each in the order of calls; None if there is none.

    Args:
        class_name: its name.
        calls: what its ``forward`` calls.
        attributes: what its attributes are.
    """
    projections = [call for call in calls if attributes.may_be_projection(call.name)]
    times = Counter(call.name for call in projections)
    groups: dict[tuple[int, int], list[str]] = {}
    for call in projections:
        if call.argument is not None and call.variable and not call.nested and times[call.name] == 1:
            groups.setdefault((id(call.argument), call.suite), []).append(call.name)
    together = tuple(tuple(names) for names in groups.values() if len(names) > 1)
    return SharedInput(class_name, together) if together else None
