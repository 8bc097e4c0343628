"""A sample by seed, spread over rooms and, in a room, over operators."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from tools.mutants.mutant import Mutant, digest


def sample(
    mutants: Mapping[str, Sequence[Mutant]], size: int, seed: int, is_fault: Callable[[Mutant], bool]
) -> dict[str, list[Mutant]]:
    """A part of the mutants of each room.

    A mutant's rank depends on the seed and on what is around it in its own function, so that a change elsewhere leaves
    it in the sample, and its result in use.

    Args:
        mutants: all mutants of each room.
        size: how many in all; rooms get equal shares, and what a small room leaves goes to the others.
        seed: another one gives another sample.
        is_fault: whether a mutant is one at all; asked only of those that are drawn.
    """
    turns = {room: filter(is_fault, _by_turns(found, seed)) for room, found in mutants.items()}
    chosen: dict[str, list[Mutant]] = {room: [] for room in mutants}
    left = size
    while left and turns:
        for room, waiting in list(turns.items()):
            drawn = next(waiting, None) if left else None
            if drawn is not None:
                chosen[room].append(drawn)
                left -= 1
            elif left:
                del turns[room]
    return chosen


def _by_turns(mutants: Sequence[Mutant], seed: int) -> Iterator[Mutant]:
    """Every operator once, then every operator once more, ...; no operator outweighs the others by its mere number."""
    ranked: defaultdict[str, list[Mutant]] = defaultdict(list)
    for mutant in sorted(mutants, key=lambda mutant: mutant.rank(seed)):
        ranked[mutant.operator].append(mutant)
    operators = sorted(ranked, key=lambda name: digest(f"{seed}{mutants[0].file}{name}"))
    while ranked:
        for operator in operators:
            if operator in ranked:
                yield ranked[operator].pop(0)
                if not ranked[operator]:
                    del ranked[operator]
