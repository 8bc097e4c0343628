"""The rounds: every contender prepares a cell, and then each gives one sample in turn, until all rounds are done."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from patchkit.errors import WorkerLostError
from patchkit.processes.workers import Worker, WorkerKind
from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.results import CellResult, Result
from patchkit.testing.contenders.roofline import Rates

_ANSWER = "patchkit.testing.contenders.worker:answer"
_LONGEST = 600.0
_GRACE = 60.0
_TOO_LARGE = "OutOfMemoryError"


class Session(Protocol):
    """Someone who answers for one contender."""

    def ask(self, do: str, seconds: float, **asked: Any) -> dict[str, Any]:
        """What :mod:`patchkit.testing.contenders.worker` answers, within so many seconds."""

    def stop(self) -> None:
        """End it."""


class ProcessSession:
    """A contender in a process of its own, which is started again if it was lost.

    Args:
        contender: its name.
    """

    def __init__(self, contender: str) -> None:
        self._contender = contender
        self._worker: Worker | None = None
        self._ended = False

    def ask(self, do: str, seconds: float, **asked: Any) -> dict[str, Any]:
        """See :class:`Session`. Where there is no answer, ``{"not_run": REASON}``."""
        limit = min(max(seconds, 1.0), _LONGEST)
        try:
            if self._worker is None or not self._worker.alive:
                if do != "prepare" or self._ended:
                    return {"not_run": "its process has ended"}
                # No threads of a compiler that work, or wait busily, while others are timed.
                variables = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ}
                kind = WorkerKind(Path(sys.executable), _ANSWER, variables, Path.cwd(), limit, like_this=True)
                self._worker = Worker(kind)
            self._worker.kind = replace(self._worker.kind, seconds=limit)
            said = self._worker.ask(json.dumps({"do": do, "contender": self._contender, **asked}).encode())
        except WorkerLostError as error:
            return {"not_run": str(error)}
        found: dict[str, Any] = json.loads(said)
        return found

    def stop(self) -> None:
        """See :class:`Session`."""
        self._ended = True
        if self._worker is not None:
            self._worker.stop()


@dataclass
class Budget:
    """Seconds that may be spent, counted from the start; None for as many as it takes."""

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.seconds is None else self.seconds - (self.clock() - self._start)

    @property
    def reason(self) -> str:
        """Why what comes next is not run."""
        return f"the budget of {self.seconds:g} s was spent before"


@dataclass
class Rounds:
    """Contenders that are compared.

    Attributes:
        names: of the contenders.
        rounds: how often each gives a sample; 0 to count and run nothing.
        budget: see :class:`Budget`.
        rates: of the device, for the modelled time.
        host: whether the host's time is measured too.
        jobs: how many contenders prepare at once.
        left_out: contenders that are only listed, with the reason.
        start: makes the session of a contender.
        note: is told what is going on: contender, cell, and what it does.
    """

    names: Sequence[str]
    rounds: int = 5
    budget: Budget = field(default_factory=Budget)
    rates: Rates | None = None
    host: bool = False
    jobs: int = 1
    left_out: Mapping[str, str] = field(default_factory=dict)
    start: Callable[[str], Session] = ProcessSession
    note: Callable[[str], object] = lambda text: None

    def run(self, cells: Sequence[Cell]) -> Iterator[CellResult]:
        """The results, cell by cell, in their order."""
        sessions = {name: self.start(name) for name in self.names if name not in self.left_out}
        with contextlib.ExitStack() as stack:
            executor = stack.enter_context(ThreadPoolExecutor(max(self.jobs, 1)))
            for session in sessions.values():  # before the executor waits for its threads, which wait for these
                stack.callback(session.stop)
            for cell in cells:
                if self.budget.left <= 0:
                    yield CellResult(cell, [Result(name, not_run=self.budget.reason) for name in self.names])
                else:
                    yield self._cell(cell, sessions, executor)

    def _cell(self, cell: Cell, sessions: Mapping[str, Session], executor: ThreadPoolExecutor) -> CellResult:
        self.note(f"{cell.title}: preparing")
        prepared = executor.map(lambda name: self._prepared(name, sessions.get(name), cell), self.names)
        found = CellResult(cell, list(prepared))
        for index, one in enumerate(found.results):  # of those that were too large beside others
            if one.not_run.startswith(_TOO_LARGE) and self.jobs > 1:
                found.results[index] = self._prepared(one.contender, sessions[one.contender], cell)
        running = [one for one in found.results if self.rounds and not one.not_run]
        samples: dict[str, list[tuple[float, float]]] = {one.contender: [] for one in running}
        host: dict[str, list[float]] = {one.contender: [] for one in running}
        for number in range(self.rounds):
            if not running or (number and self.budget.left <= 0):
                break
            self.note(f"{cell.title}: round {number + 1} of {self.rounds}")
            first = number % len(running)  # nobody is always the one who follows the same
            for one in [*running[first:], *running[:first]]:
                answer = sessions[one.contender].ask("sample", self.budget.left + _GRACE)
                if "not_run" in answer:
                    one.not_run = answer["not_run"]
                else:
                    samples[one.contender].append(tuple(answer["sample"]))
                    host[one.contender] += answer["host_us"]
            running = [one for one in running if not one.not_run]
            found.rounds = number + 1
        for one in found.results:
            if not one.not_run:
                one.take(samples.get(one.contender, ()), host.get(one.contender, ()))
        for session in sessions.values():
            session.ask("drop", _LONGEST)
        return found

    def _prepared(self, name: str, session: Session | None, cell: Cell) -> Result:
        if session is None:
            return Result(name, not_run=self.left_out[name])
        if self.budget.left <= 0:
            return Result(name, not_run=self.budget.reason)
        rates = None if self.rates is None else asdict(self.rates)
        asked = {"cell": cell.as_dict(), "rates": rates, "measure": self.rounds > 0, "host": self.host}
        answer = session.ask("prepare", self.budget.left, **asked)
        if not self.rounds and "not_run" not in answer:
            answer["not_run"] = "no rounds were asked for"
        return Result(name, **answer)
