"""Running a section within its time: in processes that may die, hang or lose the device, one cell at a time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

from tools.gpu.cells import FAILED, OUT_OF_TIME, Outcome, Setting, not_reached, outcome_of
from tools.gpu.places import ROOT, surroundings
from tools.gpu.table_of_sections import Section
from tools.gpu.worker import MAKING, not_made

_START_SECONDS = 120.0
_LOG = 3000


def run_inline(section: Section, setting: Setting, seconds: float) -> list[Outcome]:
    """Ask the cells in this process: a rehearsal, where starting processes would take longer than the cells."""
    end = time.monotonic() + seconds
    try:
        cells = section.cells(setting)
    except Exception as error:
        return [not_made(error)]
    return [outcome_of(cell) if time.monotonic() < end else not_reached(cell.name, OUT_OF_TIME) for cell in cells]


def run_apart(section: Section, setting: Setting, seconds: float, command: tuple[str, ...] = ()) -> list[Outcome]:
    """Ask the cells in processes of their own.

    Args:
        section: whose cells.
        setting: what is asked for.
        seconds: after which whatever still runs is stopped; cells that were not reached are recorded as not run.
        command: starts a worker; by default this interpreter with ``tools.gpu.worker``.

    Returns:
        An outcome of every cell.
    """
    end = time.monotonic() + seconds
    count = 1 if setting.on_cpu else max(1, min(section.processes, (os.cpu_count() or 1) // 2))
    shards = [_Shard(section, setting, end, f"{index}/{count}", command) for index in range(count)]
    with ThreadPoolExecutor(count) as pool:
        found = [outcome for outcomes in pool.map(_Shard.run, shards) for outcome in outcomes]
    made = [outcome for outcome in found if outcome["cell"] == MAKING]
    return [outcome for outcome in found if outcome["cell"] != MAKING] + made[:1]  # of every shard the same


@dataclass
class _Shard:
    """The cells that go to one process, or to those that follow it where it dies."""

    section: Section
    setting: Setting
    end: float
    part: str
    command: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    done: dict[str, Outcome] = field(default_factory=dict)
    begun: str = ""
    limit: float = _START_SECONDS

    def run(self) -> list[Outcome]:
        """Until every cell has an outcome, or the time is used up."""
        while time.monotonic() < self.end:
            before = len(self.done)
            ended = self._one_process()
            if not ended or MAKING in self.done or (self.names and len(self.done) >= len(self.names)):
                break
            if len(self.done) == before:  # it died before it began anything: so would the next
                self.done[MAKING] = {"cell": MAKING, "status": FAILED, "reason": ended, "seconds": 0.0}
                break
        left = [not_reached(name, OUT_OF_TIME) for name in self.names if name not in self.done]
        if not self.names and not self.done:
            left = [not_reached(MAKING, OUT_OF_TIME)]
        return [*self.done.values(), *left]

    def _one_process(self) -> str:
        """How a process ended that left something undone; nothing if all is done."""
        reading, writing = os.pipe()
        arguments = ["--section", self.section.name, "--device", self.setting.device, "--shard", self.part]
        arguments += [
            "--descriptor",
            str(writing),
            "--seconds",
            f"{self.end - time.monotonic():.1f}",
            *(["--tiny"] if self.setting.tiny else []),
        ]
        start = self.command or (sys.executable, "-m", "tools.gpu.worker")
        self.begun, self.limit = "", _START_SECONDS
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [*start, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                cwd=ROOT,
                env=surroundings(),
                start_new_session=True,  # so that what it starts is stopped with it
            )
            os.close(writing)
            with os.fdopen(reading, "rb", buffering=0) as lines:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(list(self.done)).encode())
                    process.stdin.close()
                stopped = self._follow(lines)
            if stopped:
                stop(process)
            code = process.wait()
            if not self.begun and code == 0:
                return ""
            how = stopped or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
            if self.begun and time.monotonic() < self.end:
                said = f"its process ended: {how}"
                self.done[self.begun] = {
                    "cell": self.begun,
                    "status": FAILED,
                    "reason": said,
                    "traceback": _tail(log),
                    "seconds": round(self.limit, 3) if stopped else 0.0,
                }
            return f"a process ended: {how}: {_tail(log)[-300:]}"

    def _follow(self, lines: IO[bytes]) -> str:
        """Take what a process says, until it says no more; why it is to be stopped, if it is."""
        unread, cell_ends = b"", time.monotonic() + self.limit
        while True:
            now = time.monotonic()
            wait = min(self.end, cell_ends) - now
            if wait <= 0:
                return "stopped, " + (OUT_OF_TIME if self.end <= now else f"it took longer than {self.limit:.0f} s")
            if not select.select([lines], [], [], wait)[0]:
                continue
            read = lines.read(1 << 16)
            if not read:
                return ""
            *whole, unread = (unread + read).split(b"\n")
            for line in whole:
                self._take(json.loads(line))
                cell_ends = time.monotonic() + self.limit

    def _take(self, said: Mapping[str, Any]) -> None:
        if "cells" in said:
            self.names = said["cells"]
        elif "begin" in said:
            self.begun, self.limit = said["begin"], said["seconds"]
        else:
            outcome = said["outcome"]
            self.done[outcome["cell"]] = outcome
            self.begun = ""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that leads a session of its own, and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _tail(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _LOG))
    return log.read().decode("utf-8", "replace")


RUNNERS: dict[bool, Callable[[Section, Setting, float], list[Outcome]]] = {True: run_inline, False: run_apart}
"""By whether it is in this process."""
