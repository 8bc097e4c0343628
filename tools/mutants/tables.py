"""What is shown at the end."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from tools.mutants.mutant import Mutant
from tools.mutants.results import Result

EQUIVALENT = "equivalent"
COLUMNS = ("killed", "survived", "timed out", EQUIVALENT)


@dataclass(frozen=True)
class Tally:
    """How the mutants of one room ended.

    Attributes:
        counts: of each verdict, and of those argued equivalent.
        loud: of the killed, those that did not even import.
    """

    counts: Counter[str] = field(default_factory=Counter)
    loud: int = 0

    @property
    def rate(self) -> float | None:
        """The killed among those that are not equivalent; a run that takes too long is no kill. None without any."""
        tried = self.counts["killed"] + self.counts["survived"] + self.counts["timed out"]
        return self.counts["killed"] / tried if tried else None


def tally(mutants: Sequence[Mutant], results: Mapping[str, Result], equivalent: Mapping[str, str]) -> Tally:
    """Count.

    Args:
        mutants: those of a room, or of all.
        results: by the mutant's key.
        equivalent: the argument for each that is argued equivalent, by its key.
    """
    verdicts = [EQUIVALENT if mutant.key in equivalent else results[mutant.key].verdict for mutant in mutants]
    loud = sum(results[mutant.key].loud for mutant in mutants if mutant.key not in equivalent)
    return Tally(Counter(verdicts), loud)


def summary(tallies: Mapping[str, Tally]) -> Table:
    """One line for each room, and one for all."""
    table = Table("room", *COLUMNS, "rate")
    for column in table.columns[1:]:
        column.justify = "right"
    whole = Tally(sum((one.counts for one in tallies.values()), Counter()), sum(one.loud for one in tallies.values()))
    for name, one in [*tallies.items(), ("all", whole)]:
        rate = "" if one.rate is None else f"{one.rate:.0%}"
        table.add_row(name, *(str(one.counts[column]) for column in COLUMNS), rate)
    return table


def difference(mutant: Mutant, text: str) -> str:
    """A mutant as a diff of its file.

    Args:
        mutant: the mutant.
        text: its file without it.
    """
    lines = difflib.unified_diff(
        text.splitlines(), mutant.make().splitlines(), mutant.file, f"{mutant.file} ({mutant.operator})", "", "", 2, ""
    )
    return "\n".join(lines)
