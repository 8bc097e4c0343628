"""A cell: the smallest thing that passes or fails, and what is recorded of it."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Outcome = dict[str, Any]
"""What is recorded of a cell: ``cell``, ``status`` (one of :data:`STATUSES`), ``seconds``, and ``figures`` (numbers and
words by name), ``reason`` (one line) or ``traceback`` where there are any."""

OUT_OF_TIME = "the time of its section was used up"

PASSED, FAILED, NOT_RUN = STATUSES = ("passed", "failed", "not run")


@dataclass(frozen=True)
class Setting:
    """What a run is asked for.

    Attributes:
        device: as torch names it.
        tiny: shapes that a CPU runs in seconds, and few of many cases: a rehearsal, which measures nothing.
        ends: when the section's time is used up, by ``time.monotonic``.
    """

    device: str = "cuda"
    tiny: bool = False
    ends: float = math.inf

    @property
    def on_cpu(self) -> bool:
        """Whether it is a rehearsal without an accelerator."""
        return self.device.partition(":")[0] == "cpu"

    @property
    def rehearsal(self) -> bool:
        """Whether nothing that is measured means anything."""
        return self.tiny or self.on_cpu


@dataclass(frozen=True)
class Cell:
    """One question.

    Attributes:
        name: unique within its section.
        ask: returns figures by name; raises :class:`NotRun` or :class:`Wrong`, or whatever goes wrong.
        seconds: after which its process is stopped.
    """

    name: str
    ask: Callable[[], Mapping[str, Any] | None]
    seconds: float = 90.0


class NotRun(Exception):  # noqa: N818, it is no error
    """Something that the cell needs is not here; the message says what."""


class Wrong(Exception):  # noqa: N818
    """The answer is there, and is not what it has to be.

    Attributes:
        figures: what was found.
    """

    def __init__(self, said: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(said)
        self.figures = dict(figures or {})


def outcome_of(cell: Cell) -> Outcome:
    """Ask a cell; whatever it raises is recorded, but what ends a process."""
    start = time.perf_counter()
    found: Outcome = {"cell": cell.name, "status": PASSED}
    try:
        found["figures"] = dict(cell.ask() or {})
    except NotRun as absent:
        found |= {"status": NOT_RUN, "reason": str(absent)}
    except Wrong as wrong:
        found |= {"status": FAILED, "reason": first_line(wrong), "figures": wrong.figures}
    except Exception as error:  # the next cell may well pass
        found |= {"status": FAILED, "reason": first_line(error), "traceback": traceback.format_exc()[-6000:]}
    return found | {"seconds": round(time.perf_counter() - start, 3)}


def not_reached(name: str, reason: str) -> Outcome:
    """The outcome of a cell that was not asked."""
    return {"cell": name, "status": NOT_RUN, "reason": reason, "seconds": 0.0}


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip().partition("\n")[0][:300]
    return said if isinstance(error, Wrong) else f"{type(error).__name__}: {said}" if said else type(error).__name__
