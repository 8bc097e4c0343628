"""What was found: a record for each contender in each cell, as it is written to JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from patchkit.testing.contenders.cell import Cell


class Spread(NamedTuple):
    """Of the samples of all rounds.

    Attributes:
        median: the middle one.
        lower: the first quartile.
        upper: the third quartile.
        least: the smallest.
        most: the largest.
        samples: how many.
    """

    median: float
    lower: float
    upper: float
    least: float
    most: float
    samples: int


def spread(values: Sequence[float]) -> Spread:
    """The spread of one sample or more."""
    one = len(values) == 1
    lower, middle, upper = [values[0]] * 3 if one else statistics.quantiles(values, method="inclusive")
    return Spread(middle, lower, upper, min(values), max(values), len(values))


@dataclass
class Result:
    """One contender in one cell.

    Attributes:
        contender: its name.
        not_run: why it has no times; empty where it has.
        forward_ms: see :class:`Spread`; None without times. Likewise backward and the whole step.
        backward_ms: of the gradients of inputs and adapters.
        step_ms: both.
        levels: how many parts run at which level, where patchkit patched the model.
        counts: see :meth:`~patchkit.testing.contenders.counting.Counts.as_dict`; None where nothing was counted.
        not_counted: why.
        measured_peak_bytes: that the device's allocator gave out beyond weights and inputs; None on a CPU.
        launches: of kernels in a step; None where they are not counted.
        host_us: microseconds of the host for a layer's blocks, on tiny tensors; None unless it was asked for.
        modelled_ms: of a roofline over what was traced. A prediction: see
            :mod:`patchkit.testing.contenders.roofline`.
    """

    contender: str
    not_run: str = ""
    forward_ms: Spread | None = None
    backward_ms: Spread | None = None
    step_ms: Spread | None = None
    levels: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] | None = None
    not_counted: str = ""
    measured_peak_bytes: int | None = None
    launches: int | None = None
    host_us: float | None = None
    modelled_ms: float | None = None

    def take(self, samples: Sequence[tuple[float, float]], host: Sequence[float] = ()) -> None:
        """Set the times from milliseconds of forward and backward, and the host's microseconds, in every round."""
        self.host_us = statistics.median(host) if host else None
        if samples:
            self.forward_ms = spread([forward for forward, _ in samples])
            self.backward_ms = spread([backward for _, backward in samples])
            self.step_ms = spread([forward + backward for forward, backward in samples])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        for name in ("forward_ms", "backward_ms", "step_ms"):
            one: Spread | None = getattr(self, name)
            found[name] = None if one is None else one._asdict()
        return found


@dataclass
class CellResult:
    """All contenders in one cell.

    Attributes:
        cell: which.
        results: in the order of the contenders.
        rounds: in which every contender that ran gave a sample.
    """

    cell: Cell
    results: list[Result]
    rounds: int = 0

    def of(self, contender: str) -> Result | None:
        """The record of a contender; None if there is none or it has no times."""
        return next((one for one in self.results if one.contender == contender and one.step_ms is not None), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with what follows from the times."""
        plain, found = self.of("peft"), []
        for one in self.results:
            record = one.as_dict()
            if one.step_ms is not None:
                record["tokens_per_s"] = self.cell.tokens / one.step_ms.median * 1e3
                if plain is not None and plain.step_ms is not None:
                    record["step_over_peft"] = one.step_ms.median / plain.step_ms.median
            found.append(record)
        return {
            "cell": self.cell.as_dict(),
            "sizes": dict(self.cell.sizes),
            "one_thread": self.cell.one_thread,
            "rounds": self.rounds,
            "contenders": found,
        }
