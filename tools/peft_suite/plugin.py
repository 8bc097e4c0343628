"""The pytest plugin of both runs: it seeds and records each test, and in the patched run injects ``patchkit.apply``.

Loaded with ``-p tools.peft_suite.plugin``, in the processes of pytest-xdist too. The plain run never imports
patchkit's runtime.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tools.peft_suite.outcomes import Outcome, write

_COUNTS = "patchkit counts"
_RANK = ("passed", "skipped", "xfailed", "xpassed", "failed", "error")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that the runner passes."""
    group = parser.getgroup("patchkit")
    group.addoption("--peft-outcomes", metavar="FILE", help="write the outcome of each test to FILE, as JSON")
    group.addoption("--peft-patched", action="store_true", help="call patchkit.apply on every PEFT model")
    group.addoption("--peft-stand-ins", action="store_true", help="the hub's cache has all there is")


def pytest_configure(config: pytest.Config) -> None:
    """Inject before any test module is imported."""
    counts: Counter[str] = Counter()
    if config.getoption("--peft-patched") and not _distributes(config):
        from tools.peft_suite.injection import inject

        inject(counts)
    config.pluginmanager.register(_Tests(counts, stand_ins=config.getoption("--peft-stand-ins")))
    if config.getoption("--peft-outcomes") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(Path(config.getoption("--peft-outcomes"))))


def _distributes(config: pytest.Config) -> bool:
    """Whether this process only hands tests to pytest-xdist's workers."""
    return bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")


class _Tests:
    """In the process that runs tests."""

    def __init__(self, counts: Counter[str], *, stand_ins: bool) -> None:
        self._counts = counts
        self._stand_ins = stand_ins

    def pytest_collection_finish(self) -> None:
        """PEFT's tests go online once for each model; with stand-ins every model counts as fetched."""
        for name, module in list(sys.modules.items()):
            if self._stand_ins and name.endswith("testing_utils") and "_HUB_MODEL_ACCESSES" in vars(module):
                vars(module)["_HUB_MODEL_ACCESSES"] = _Fetched()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """The same random numbers in both runs, whatever ran before in this process."""
        import random

        import numpy
        import torch

        seed = zlib.crc32(item.nodeid.encode())
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        self._counts.clear()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
        """What was counted goes with the last report of the test, across processes."""
        if call.when == "teardown" and self._counts:
            item.user_properties.append((_COUNTS, dict(self._counts)))
        return (yield)


class _Fetched(dict[str, int]):
    """PEFT's count of accesses to each model, where none is the first."""

    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, _: str) -> int:
        return 1


class _Recorder:
    """In the process that sees all reports."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._run: dict[str, Outcome] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is one test, with an error."""
        if report.failed:
            self._run[report.nodeid] = Outcome("error", _message(report))
        elif report.skipped:
            self._run[report.nodeid] = Outcome("skipped", _message(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of set-up, call, tear-down and subtests, the worst counts."""
        result = _result(report)
        known = self._run.get(report.nodeid, Outcome("passed"))
        error = known.error
        if _RANK.index(result) > _RANK.index(known.result):
            error = _message(report)
        else:
            result = known.result
        counts: Any = dict(report.user_properties).get(_COUNTS, known.counts)
        self._run[report.nodeid] = Outcome(result, error, counts)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        write(self._run, self._path)


def _result(report: pytest.TestReport) -> str:
    expected_to_fail = hasattr(report, "wasxfail")
    if report.skipped:
        return "xfailed" if expected_to_fail else "skipped"
    if report.passed:
        return "xpassed" if expected_to_fail else "passed"
    return "failed" if report.when == "call" else "error"


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The exception of a failure, or the reason of a skip, in one line."""
    found: Any = report.longrepr
    if isinstance(found, tuple):  # of a skip: file, line and reason
        text = found[2]
    elif getattr(found, "reprcrash", None) is not None:
        text = found.reprcrash.message
    else:
        lines = str(found).splitlines()
        text = next((line.removeprefix("E  ") for line in reversed(lines) if line.startswith("E  ")), str(found))
    return " ".join(text.split())[:400]
