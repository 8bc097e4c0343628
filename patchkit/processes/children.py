"""Processes that are started for a piece of work: how they start, and end at its time limit or when it is interrupted.

A child is the head of a group of its own, so that whatever it started ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_LOOK_EVERY = 0.1
_SAID_LIMIT = 16 * 2**20

_running: set[subprocess.Popen[bytes]] = set()
_stopping = threading.Event()


class ChildError(Exception):
    """A process was stopped before it was done."""


@dataclass(frozen=True)
class Done:
    """What a process did.

    Attributes:
        code: its exit code.
        output: what it wrote to standard output.
        said: what it wrote to standard error.
    """

    code: int
    output: str
    said: str


def start(command: Sequence[str], variables: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process as the head of its own group, which :func:`stop` ends as a whole."""
    return subprocess.Popen(list(command), env=dict(variables), start_new_session=os.name != "nt", **options)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and, where the system has groups, all that it started and that did not leave its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_child(
    command: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str],
    folder: Path | None = None,
    limit: int = 0,
) -> Done:
    """Run a process to its end, and end with it all that it started and left.

    Args:
        command: the program and its arguments.
        seconds: how long it may take.
        environment: its environment variables.
        folder: where it writes.
        limit: bytes that it may write there.

    Raises:
        ChildError: it took too long, wrote too much, or :func:`all_stopped` stopped it; with which of these.
        OSError: it cannot be started.
    """
    end = time.monotonic() + seconds
    # Files, because a pipe that a grandchild holds open is never at its end.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said:
        process = start(command, environment, stdin=subprocess.DEVNULL, stdout=output, stderr=said)
        _running.add(process)
        try:
            while process.poll() is None:
                if _stopping.is_set():
                    raise ChildError("it was interrupted")
                if time.monotonic() > end:
                    raise ChildError(f"it was not done after {seconds:.0f} s")
                if folder is not None and _size(folder) > limit:
                    raise ChildError(f"it fetched more than {limit >> 20} MiB")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_EVERY)
        finally:
            stop(process)
            _running.discard(process)
        return Done(process.returncode, _text(output), _text(said))


@contextmanager
def all_stopped() -> Iterator[None]:
    """End every process of :func:`run_child`, in whichever thread, and let none start within this context."""
    _stopping.set()
    try:
        for process in list(_running):
            stop(process)
        yield
    finally:
        _stopping.clear()


def is_stopping() -> bool:
    """Whether :func:`all_stopped` is in force."""
    return _stopping.is_set()


@contextmanager
def without_interruptions() -> Iterator[None]:
    """Processes started in this context never get Ctrl-C, which reaches this one when the context ends.

    A terminal sends it to every process of a command. The command ends its processes itself; each would print a
    traceback otherwise. On Windows nothing is held back.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def how_it_ended(code: int | None) -> str:
    """The end of a process in words."""
    if code is None or code >= 0:
        return f"its process ended with exit code {code} before it had answered"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    cause = "; that is what happens where memory runs out" if name == "SIGKILL" else ""
    return f"its process was killed ({name}{cause})"


def last_line(text: str) -> str:
    """The last line of a text that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # renamed meanwhile
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_SAID_LIMIT).decode("utf-8", errors="replace").replace("\r\n", "\n")
