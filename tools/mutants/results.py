"""What was found so far, as lines of JSON: a run that is stopped goes on where it was."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["killed", "survived", "timed out"]


@dataclass(frozen=True)
class Result:
    """What became of one mutant.

    Attributes:
        key: of the mutant.
        verdict: killed by a test; survived all of them; or they took too long.
        by: the test that killed it.
        loud: whether it was found because nothing could be imported, or the process died.
        seconds: how long the tests took.
        tests: hash of the tests and of what they share. A mutant that survived is tried again when they change; one
            that was killed is not.
    """

    key: str
    verdict: Verdict
    by: str
    loud: bool
    seconds: float
    tests: str


@dataclass(frozen=True)
class Baseline:
    """How long tests take where there is no fault, and that they pass there.

    Attributes:
        test: the file, or one test of it.
        state: hash of the file, of its helpers and of all sources.
        seconds: how long it took.
    """

    test: str
    state: str
    seconds: float


class Store:
    """Results and baselines in one file.

    Args:
        path: the file; it is made, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._results: dict[str, Result] = {}
        self._baselines: dict[tuple[str, str], Baseline] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                self._enter(json.loads(line))
            except (ValueError, TypeError):  # the end of a file whose writer was killed
                continue

    def _enter(self, entry: dict[str, Any]) -> None:
        if "key" in entry:
            self._results[entry["key"]] = Result(**entry)
        else:
            baseline = Baseline(**entry)
            self._baselines[baseline.test, baseline.state] = baseline

    def result(self, key: str, tests: str) -> Result | None:
        """The result of a mutant, if it still holds for these tests."""
        found = self._results.get(key)
        return found if found is not None and (found.verdict == "killed" or found.tests == tests) else None

    def baseline(self, test: str, state: str) -> Baseline | None:
        """The time of a test file in this state of the tree."""
        return self._baselines.get((test, state))

    def last_seconds(self, test: str) -> float | None:
        """The time of a test file in whatever state of the tree it ran last."""
        return next((known.seconds for known in reversed(self._baselines.values()) if known.test == test), None)

    def add(self, entry: Result | Baseline) -> None:
        """Write one down, at once."""
        with self._lock:
            values = asdict(entry)
            self._enter(values)
            with self._path.open("a", encoding="utf-8") as file:
                if file.tell() and not self._path.read_bytes().endswith(b"\n"):
                    file.write("\n")
                file.write(json.dumps(values) + "\n")
