"""Which mutants are tried: a sample of all there are, or the known ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatch

from tools.mutants.finding import is_fault, mutants_of
from tools.mutants.known import known_mutants
from tools.mutants.mirror import Mirror
from tools.mutants.mutant import Mutant
from tools.mutants.sample import sample

ELSEWHERE = "elsewhere"
"""The room of a known fault whose file is in none."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        rooms: only these.
        files: only of files that match this pattern.
        operators: only of operators that match this one.
    """

    rooms: tuple[str, ...]
    files: str
    operators: str


def sampled(mirror: Mirror, wanted: Wanted, size: int, seed: int) -> dict[str, list[Mutant]]:
    """A sample of the mutants of each room; see :func:`~tools.mutants.sample.sample`."""
    texts: dict[str, str] = {}
    mutants: defaultdict[str, list[Mutant]] = defaultdict(list)
    for room in wanted.rooms:
        for file in (file for file in mirror.sources(room) if fnmatch(file, wanted.files)):
            texts[file] = mirror.text(file)
            mutants[room] += [m for m in mutants_of(file, texts[file]) if fnmatch(m.operator, wanted.operators)]
    return sample(mutants, size, seed, lambda mutant: is_fault(mutant, texts[mutant.file]))


def known(mirror: Mirror, wanted: Wanted) -> dict[str, list[Mutant]]:
    """The known faults, by room."""
    room_of = {file: room for room in mirror.rooms for file in mirror.sources(room)}
    found: defaultdict[str, list[Mutant]] = defaultdict(list)
    for mutant in known_mutants(mirror.root):
        room = room_of.get(mutant.file, ELSEWHERE)
        if room in (*wanted.rooms, ELSEWHERE) and fnmatch(mutant.file, wanted.files):
            found[room].append(mutant)
    return dict(found)
