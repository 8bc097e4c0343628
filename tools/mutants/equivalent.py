"""Mutants that are argued to be the same program: no test can tell them, and none is asked to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.configuration import read_toml
from tools.mutants.mutant import Mutant

LISTED = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True)
class Equivalent:
    """One entry of ``equivalent.toml``.

    Attributes:
        file: as in :class:`~tools.mutants.mutant.Mutant`, likewise below.
        function: as there.
        operator: as there.
        before: the code that is changed, in one line.
        after: what it becomes.
        argument: why nothing that this project promises can differ.
    """

    file: str
    function: str
    operator: str
    before: str
    after: str
    argument: str

    def covers(self, mutant: Mutant) -> bool:
        """Whether the entry is about this mutant."""
        place = (mutant.file, mutant.function, mutant.operator)
        return place == (self.file, self.function, self.operator) and mutant.code() == (self.before, self.after)


class Equivalents:
    """The list.

    Args:
        entries: its entries.
    """

    def __init__(self, entries: Iterable[Equivalent]) -> None:
        self.entries = tuple(entries)

    def argument(self, mutant: Mutant) -> str | None:
        """Why a mutant is equivalent, or None if nobody says so."""
        return next((entry.argument for entry in self.entries if entry.covers(mutant)), None)

    def stale(self, mutants: Iterable[Mutant]) -> list[Equivalent]:
        """The entries that are about none of these mutants: their code was changed."""
        found = list(mutants)
        return [entry for entry in self.entries if not any(entry.covers(mutant) for mutant in found)]


def read_equivalents(path: Path = LISTED) -> Equivalents:
    """The list in a file."""
    return Equivalents(Equivalent(**entry) for entry in read_toml(path).get("equivalent", ()))
