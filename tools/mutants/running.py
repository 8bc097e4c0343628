"""A sample of mutants against the tests that mirror their files."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tools.mutants.bench import Bench
from tools.mutants.copies import copy_tree, files_of, state_of
from tools.mutants.mirror import Mirror
from tools.mutants.mutant import Mutant
from tools.mutants.results import Baseline, Result, Store, Verdict

SLOWEST = 3.0
"""A run may take this many times as long as without a fault, and a start besides; then it counts as hanging."""

START_SECONDS = 60.0

_BASELINE_SECONDS = 1800.0


class FailsUnmutatedError(Exception):
    """A test fails where there is no fault, so that its failures say nothing."""


@dataclass(frozen=True)
class Trial:
    """A mutant, and what it is tried against.

    Attributes:
        mutant: the mutant.
        tests: the test files, quickest first.
        state: hash of these and of what they share.
        limit: seconds after which they are killed.
    """

    mutant: Mutant
    tests: tuple[str, ...]
    state: str
    limit: float


class Runner:
    """Tries mutants, several at once.

    Args:
        mirror: the declaration.
        store: where results are kept.
        folder: for copies and logs.
        jobs: how many at once.
        say: is given a line on what is done.
    """

    def __init__(self, mirror: Mirror, store: Store, folder: Path, jobs: int, say: Callable[[str], None]) -> None:
        self._mirror, self._store, self._jobs, self._say = mirror, store, jobs, say
        self._files = files_of(mirror.root)
        # As it is now: what is edited while this runs counts the next time.
        self._tree, self._folder = folder / "tree", folder
        copy_tree(mirror.root, self._files, self._tree)
        self._benches: queue.Queue[Bench] = queue.Queue()

    def run(self, mutants: Sequence[Mutant]) -> dict[str, Result]:
        """The result of each mutant, by its key; what is known is not tried again.

        Raises:
            FailsUnmutatedError: see there.
        """
        benches = [Bench(self._mirror, self._tree, self._files, self._folder / f"job{n}") for n in range(self._jobs)]
        for bench in benches:
            self._benches.put(bench)
        try:
            with ThreadPoolExecutor(self._jobs) as pool:
                tests = {file: self._mirror.tests(file) for file in dict.fromkeys(m.file for m in mutants)}
                known = {m.key: self._store.result(m.key, self._state(tests[m.file])) for m in mutants}
                waiting = [m for m in mutants if known[m.key] is None]
                found = {key: result for key, result in known.items() if result is not None}
                needed = dict.fromkeys(test for m in waiting for test in tests[m.file])
                times = dict(zip(needed, pool.map(self._time, needed), strict=True))
                trials = [self._trial(m, tests[m.file], times) for m in waiting]
                trials.sort(key=lambda trial: trial.limit)
                for done, result in enumerate(pool.map(self._try, trials), 1):
                    found[result.key] = result
                    self._say(f"{done}/{len(trials)} {result.verdict:9} {result.seconds:4.0f} s  {_short(result)}")
                return found
        finally:
            for bench in benches:
                bench.close()

    def _trial(self, mutant: Mutant, tests: Iterable[str], times: dict[str, float]) -> Trial:
        quickest = tuple(sorted(tests, key=lambda test: times[test]))
        limit = SLOWEST * sum(times[test] for test in quickest) + START_SECONDS
        return Trial(mutant, quickest, self._state(quickest), limit)

    def _state(self, tests: Iterable[str]) -> str:
        """Hash of test files, and of everything beside them that is no test file: helpers, and configuration."""
        chosen = set(tests)
        folders = {str(PurePosixPath(test).parent) for test in chosen} | {"tests"}
        helpers = {file for file in self._files if str(PurePosixPath(file).parent) in folders and not _is_test(file)}
        return state_of(self._tree, chosen | helpers)

    def _time(self, test: str) -> float:
        """Seconds that a test file takes where there is no fault."""
        state = state_of(self._tree, [file for file in self._files if file == test or not _is_test(file)])
        known = self._store.baseline(test, state)
        if known is not None:
            return known.seconds
        bench = self._benches.get()
        try:
            outcome = bench.run([test], _BASELINE_SECONDS)
        finally:
            self._benches.put(bench)
        if not outcome.passed:
            raise FailsUnmutatedError(f"{test} fails without a fault: {outcome.by or 'it takes too long'}")
        self._store.add(Baseline(test, state, outcome.seconds))
        self._say(f"{test} takes {outcome.seconds:.0f} s")
        return outcome.seconds

    def _try(self, trial: Trial) -> Result:
        bench = self._benches.get()
        try:
            outcome = bench.run(trial.tests, trial.limit, (trial.mutant.file, trial.mutant.make()))
        finally:
            self._benches.put(bench)
        verdict: Verdict = "timed out" if outcome.passed is None else "survived" if outcome.passed else "killed"
        result = Result(trial.mutant.key, verdict, outcome.by, outcome.loud, outcome.seconds, trial.state)
        self._store.add(result)
        return result


def _is_test(file: str) -> bool:
    path = PurePosixPath(file)
    return path.parts[0] == "tests" and path.name.startswith("test_")


def _short(result: Result) -> str:
    place = result.key.rpartition(":")[0]
    return f"{place}  {result.by}" if result.by else place
