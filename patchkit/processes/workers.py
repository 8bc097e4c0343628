"""Worker processes: isolated interpreters that answer requests, and whose death is an answer too.

One request is with one worker. If that is killed, leaves, hangs or answers what is none, then that one request is lost,
with the reason, and another worker takes the next. (A pool of :mod:`concurrent.futures` loses all of them without
saying which was to blame, has no time limit, and starts its workers with the current folder in front of ``sys.path``.)
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from patchkit.errors import WorkerLostError
from patchkit.processes.children import how_it_ended, last_line, start, stop
from patchkit.processes.interpreters import isolated
from patchkit.processes.isolated import ANSWER, ERROR, HEADER, REQUEST

_JUNK_LIMIT = 2**20
_ANSWER_LIMIT = 2**26
_SAID_CHUNKS = 64
_SAID_LIMIT = 2000


@dataclass(frozen=True)
class WorkerKind:
    """How a worker is started.

    Attributes:
        python: the interpreter.
        function: ``module:function``, from bytes to bytes.
        variables: its environment variables.
        folder: where it stands.
        seconds: for one request.
        like_this: see :func:`patchkit.processes.interpreters.isolated`.
        shown: likewise.
    """

    python: Path
    function: str
    variables: Mapping[str, str]
    folder: Path
    seconds: float
    like_this: bool = False
    shown: tuple[str, ...] = ()


def sharing_cores(kind: WorkerKind, jobs: int) -> WorkerKind:
    """The same, where so many work at once: together they start as many threads as there are cores.

    Threads of one product wait for each other without giving their core away. On two cores, two processes with two
    threads each took up to eight times as long for tiny models as with one thread each. What the user says counts
    first.
    """
    threads = max(1, (os.cpu_count() or 1) // max(jobs, 1))
    return replace(kind, variables={"OMP_NUM_THREADS": str(threads), **kind.variables})


@dataclass
class Worker:
    """One process. Not for several threads at once, but :meth:`stop` may be called by any."""

    kind: WorkerKind
    _process: subprocess.Popen[bytes] = field(init=False)
    _answers: queue.SimpleQueue[tuple[bytes, int, bytes] | None] = field(init=False, default_factory=queue.SimpleQueue)
    _said: deque[bytes] = field(init=False, default_factory=lambda: deque(maxlen=_SAID_CHUNKS))
    _listening: threading.Thread = field(init=False)
    _number: int = field(init=False, default=0)
    _stopped: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        command = isolated(self.kind.python, self.kind.function, like_this=self.kind.like_this, shown=self.kind.shown)
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            self._process = start(command, self.kind.variables, cwd=self.kind.folder, **pipes)
        except OSError as error:
            raise WorkerLostError(f"{self.kind.python} cannot be started: {error.strerror or error}") from error
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        threading.Thread(target=self._receive, args=(self._greet(),), daemon=True).start()

    def ask(self, request: bytes) -> bytes:
        """The answer to a request.

        Raises:
            WorkerLostError: there is none. The worker is of no more use if it is not :attr:`alive`.
        """
        self._number += 1
        self._send(HEADER.pack(REQUEST, self._number, len(request)) + request)
        until = time.monotonic() + self.kind.seconds
        while True:
            try:
                got = self._answers.get(timeout=min(max(until - time.monotonic(), 0.0), 1.0))
            except queue.Empty:
                if time.monotonic() >= until:
                    self.stop()
                    raise WorkerLostError(f"it took longer than {self.kind.seconds:g} s and was stopped") from None
                if self._process.poll() is None:
                    continue
                got = self._last_answer()
            if got is None:
                raise WorkerLostError(self._why_it_ended())
            kind, number, said = got
            if number == self._number and kind == ANSWER:
                return said
            if number == self._number and kind == ERROR:
                raise WorkerLostError(said[:_SAID_LIMIT].decode("utf-8", "replace"))

    def _last_answer(self) -> tuple[bytes, int, bytes] | None:
        """What it sent before it went. Something that it started may hold its end of the pipe, so there is no end."""
        try:
            return self._answers.get(timeout=1.0)
        except queue.Empty:
            return None

    @property
    def memory(self) -> int:
        """Bytes of memory that it has now; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self._process.pid}/statm", "rb") as told:
                return int(told.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError, AttributeError):
            return 0

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return not self._stopped and self._process.poll() is None

    def stop(self) -> None:
        """End it, with all that it started."""
        if self._stopped:
            return  # what has its number now may be another process
        self._stopped = True
        stop(self._process)
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _send(self, message: bytes) -> None:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone, which the wait for its answer tells

    def _greet(self) -> bytes:
        line = secrets.token_hex(32).encode() + b"\n"
        self._send(line)
        return line

    def _receive(self, greeting: bytes) -> None:
        """Hand on what it answers; None when no more comes, or something that is no answer."""
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            if _skip_to(answers, greeting):
                while (got := _answer(answers)) is not None:
                    self._answers.put(got)
        self._answers.put(None)

    def _listen(self) -> None:
        """Keep the end of what it says: a pipe that nobody reads stops it when it is full."""
        assert self._process.stderr is not None
        with self._process.stderr as said:
            while chunk := os.read(said.fileno(), 4096):
                self._said.append(chunk)

    def _why_it_ended(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = None
        self.stop()
        self._listening.join(1.0)
        said = b"".join(self._said).decode("utf-8", "replace")
        how = how_it_ended(code) if code is not None else "its process sent what is no answer"
        return f"{how}: {last_line(said)[:_SAID_LIMIT]}" if said.strip() else how


def _skip_to(answers: IO[bytes], greeting: bytes) -> bool:
    """Pass over what was written before the worker was ready. Returns whether it became ready."""
    junk = 0
    while junk < _JUNK_LIMIT and (line := answers.readline(_JUNK_LIMIT)):
        if line.endswith(greeting):
            return True
        junk += len(line)
    return False


def _answer(answers: IO[bytes]) -> tuple[bytes, int, bytes] | None:
    header = answers.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    kind, number, size = HEADER.unpack(header)
    if kind not in {ANSWER, ERROR} or size > _ANSWER_LIMIT:
        return None
    said = answers.read(size)
    return (kind, number, said) if len(said) == size else None


def ask_all(
    kind: WorkerKind, requests: Sequence[bytes], jobs: int, first: Worker | None = None, *, memory: int | None = None
) -> Iterator[tuple[int, bytes | WorkerLostError]]:
    """Every request's index with its answer, or why there is none, in the order in which they come.

    Args:
        kind: of the workers.
        requests: what to ask.
        jobs: how many workers at once.
        first: a worker that runs already; it is stopped with the others.
        memory: bytes after which a worker makes room for a new one, between two requests. None lets them grow.
    """
    waiting: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    for item in enumerate(requests):
        waiting.put(item)
    found: queue.SimpleQueue[tuple[int, bytes | WorkerLostError]] = queue.SimpleQueue()
    crew = _Crew(kind, waiting, found, memory)
    try:
        for index in range(min(max(jobs, 1), len(requests))):
            threading.Thread(target=crew.work, args=(first if index == 0 else None,), daemon=True).start()
        for _ in requests:
            yield found.get()
    finally:
        crew.stop()
        if first is not None:
            first.stop()


@dataclass
class _Crew:
    """Threads that have a worker each and share the requests."""

    kind: WorkerKind
    waiting: queue.SimpleQueue[tuple[int, bytes]]
    found: queue.SimpleQueue[tuple[int, bytes | WorkerLostError]]
    memory: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _workers: list[Worker] = field(default_factory=list)
    _stopped: bool = False

    def work(self, worker: Worker | None) -> None:
        """Take requests until there are no more."""
        while True:
            try:
                index, request = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                if worker is not None and self.memory is not None and worker.memory > self.memory:
                    worker.stop()
                if worker is None or not worker.alive:
                    worker = self._hire()
                if worker is None:
                    return
                self.found.put((index, worker.ask(request)))
            except WorkerLostError as lost:
                self.found.put((index, lost))
            except BaseException as error:  # every request is answered: whoever asked would wait for good
                self.found.put((index, WorkerLostError(f"{type(error).__name__}: {error}")))
                raise

    def stop(self) -> None:
        """End every worker, and start no more."""
        with self._lock:
            self._stopped = True
            for worker in self._workers:
                worker.stop()

    def _hire(self) -> Worker | None:
        with self._lock:
            if self._stopped:
                return None
            self._workers.append(worker := Worker(self.kind))
            return worker
