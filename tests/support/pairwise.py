"""A covering grid: few cases in which every pair of values of any two options occurs together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Case = dict[str, Any]


def pairwise(options: Mapping[str, Sequence[Any]], allowed: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    """The grid, found greedily: the case that covers most pairs that are still missing, until none is.

    Args:
        options: the values of each option.
        allowed: which complete cases may occur; a pair that occurs in none of them is not missed.
    """
    cases = [
        case
        for values in itertools.product(*options.values())
        if allowed(case := dict(zip(options, values, strict=True)))
    ]
    places = [
        {name: choices.index(case[name]) for name, choices in options.items()} for case in cases
    ]  # values need not be hashable
    pairs = [set(itertools.combinations(sorted(place.items()), 2)) for place in places]
    missing: set[Any] = set().union(*pairs)
    chosen = []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(pairs[i] & missing))
        chosen.append(cases[best])
        missing -= pairs[best]
    return chosen
