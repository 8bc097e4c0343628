"""A sample of mutants against the tests that mirror their files."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from tools.mutants.bench import Bench, Outcome
from tools.mutants.copies import copy_tree, files_of, state_of
from tools.mutants.mirror import Mirror
from tools.mutants.mutant import Mutant
from tools.mutants.results import Baseline, Result, Store, Verdict

SLOWEST = 3.0
"""A run may take this many times as long as without a fault, and a start besides; then it counts as hanging."""

START_SECONDS = 60.0

PATIENCE = 900.0
"""A run that is not finished after these seconds is measured against the same tests without a fault."""

_BASELINE_SECONDS = 3600.0


class FailsUnmutatedError(Exception):
    """A test fails where there is no fault, so that its failures say nothing."""


class Runner:
    """Tries mutants, several at once.

    Args:
        mirror: the declaration.
        store: where results are kept.
        folder: for copies and logs.
        jobs: how many at once.
        say: is given a line on what is done.

    Attributes:
        red: tests that fail where there is no fault, as far as that was noticed; nothing is killed by them.
    """

    def __init__(self, mirror: Mirror, store: Store, folder: Path, jobs: int, say: Callable[[str], None]) -> None:
        self._mirror, self._store, self._jobs, self._say = mirror, store, jobs, say
        self._files = files_of(mirror.root)
        # As it is now: what is edited while this runs counts the next time.
        self._tree, self._folder = folder / "tree", folder
        copy_tree(mirror.root, self._files, self._tree)
        self._benches: queue.Queue[Bench] = queue.Queue()
        self.red: set[str] = set()

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
                tests = {file: self._quickest_first(file) for file in dict.fromkeys(m.file for m in mutants)}
                known = {m.key: self._store.result(m.key, self._state(tests[m.file])) for m in mutants}
                found = {key: result for key, result in known.items() if result is not None}
                waiting = [m for m in mutants if m.key not in found]
                tried = pool.map(lambda mutant: self._try(mutant, tests[mutant.file]), waiting)
                for done, result in enumerate(tried, 1):
                    found[result.key] = result
                    self._say(f"{done}/{len(waiting)} {result.verdict:9} {result.seconds:4.0f} s  {_short(result)}")
                return found
        finally:
            for bench in benches:
                bench.close()

    def _quickest_first(self, file: str) -> list[str]:
        """The tests of a file by the time that they took last; those that are new behind, by their size."""
        times = {test: self._store.last_seconds(test) for test in self._mirror.tests(file)}
        return sorted(times, key=lambda test: (times[test] is None, times[test] or (self._tree / test).stat().st_size))

    def _state(self, tests: Iterable[str], *, sources: bool = False) -> str:
        """Hash of test files, of their helpers (what stands beside them and is no test), and maybe of all sources."""
        folders = {str(PurePosixPath(test).parent) for test in tests} | {"tests"}
        shared = {PurePosixPath(pattern).parts[0] for patterns in self._mirror.rooms.values() for pattern in patterns}
        chosen = set(tests)
        for file in self._files:
            path = PurePosixPath(file)
            if (str(path.parent) in folders and not _is_test(file)) or (sources and path.parts[0] in shared):
                chosen.add(file)
        return state_of(self._tree, chosen)

    def _try(self, mutant: Mutant, tests: Sequence[str]) -> Result:
        """A kill counts if the test passes without the fault; a run hangs if the tests take far less without it."""
        fault = (mutant.file, mutant.make())
        outcome = self._in_a_bench(tests, PATIENCE, fault)
        while self._is_red(outcome, tests):
            outcome = self._in_a_bench(tests, PATIENCE, fault)
        if outcome.passed is None:
            limit = SLOWEST * sum(self._time(test) for test in tests) + START_SECONDS
            if limit > outcome.seconds:
                outcome = self._in_a_bench(tests, limit, fault)
        verdict: Verdict = "timed out" if outcome.passed is None else "survived" if outcome.passed else "killed"
        result = Result(mutant.key, verdict, outcome.by, outcome.loud, outcome.seconds, self._state(tests))
        self._store.add(result)
        return result

    def _is_red(self, outcome: Outcome, tests: Sequence[str]) -> bool:
        """Whether the test that failed fails without the fault, too. It is left out from then on."""
        if outcome.passed is not False or not outcome.by.startswith(tuple(tests)):  # else the process died
            return False
        test = outcome.by if outcome.by in tests else outcome.by.partition("[")[0]
        try:
            self._time(test)
        except FailsUnmutatedError as error:
            if test in tests:
                raise
            self._say(f"left out: {error}")
            self.red.add(test)
        return test in self.red

    def _time(self, test: str) -> float:
        """Seconds that a test file, or one test, takes where there is no fault.

        Raises:
            FailsUnmutatedError: it fails there.
        """
        state = self._state([test.partition("::")[0]], sources=True)
        known = self._store.baseline(test, state)
        if known is not None:
            return known.seconds
        outcome = self._in_a_bench([test], _BASELINE_SECONDS)
        if not outcome.passed:
            raise FailsUnmutatedError(f"{test} fails without a fault: {outcome.by or 'it takes too long'}")
        self._store.add(Baseline(test, state, outcome.seconds))
        return outcome.seconds

    def _in_a_bench(self, tests: Sequence[str], seconds: float, fault: tuple[str, str] | None = None) -> Outcome:
        bench = self._benches.get()
        try:
            return bench.run(tests, seconds, fault, left_out=sorted(self.red))
        finally:
            self._benches.put(bench)


def _is_test(file: str) -> bool:
    path = PurePosixPath(file)
    return path.parts[0] == "tests" and path.name.startswith("test_")


def _short(result: Result) -> str:
    place = result.key.rpartition(":")[0]
    return f"{place}  {result.by}" if result.by else place
