"""Worker processes: every way in which one can end is no answer, and a private channel is private."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import worker_functions

from patchkit.errors import WorkerLostError
from patchkit.processes.interpreters import variables_for_release
from patchkit.processes.isolated import HEADER, REQUEST
from patchkit.processes.workers import Worker, WorkerKind, ask_all, sharing_cores

FORGE = "import os, struct; frame = struct.pack('>cIQ', b'=', 1, 6) + b'forged'\n"
# Whatever is open besides the three; there are few.
PRIVATE = "def private():\n    for fd in range(3, 32):\n        try:\n            yield fd, os.write(fd, frame)\n        except OSError: pass\n"

NOISE = "sent what is no answer|Broken pipe"  # whichever of the two ends first

ENDS = {
    "exit code 0": ("import os; os._exit(0)", "ended with exit code 0 before it had answered"),
    "exit code 1": ("import os; os._exit(1)", "ended with exit code 1 before it had answered"),
    "killed": (
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        r"killed \(SIGKILL; that is what happens where memory runs out\)",
    ),
    "crash": ("import faulthandler; faulthandler.disable(); faulthandler._sigsegv()", r"killed \(SIGSEGV"),
    "sys.exit(0)": ("import sys; sys.exit(0)", "^SystemExit: 0$"),
    "exception": ("1 / 0", "^ZeroDivisionError: division by zero$"),
    "interrupted": ("raise KeyboardInterrupt", "^KeyboardInterrupt$"),
    "no memory": ("raise MemoryError", "^MemoryError$"),
    "hangs": ("import time; time.sleep(60)", "took longer than 2 s and was stopped"),
    "busy": ("while True: pass", "took longer than 2 s and was stopped"),
    "no bytes": ("answer = None", "TypeError"),
    "last words": ("import os, sys; sys.stderr.write('a\\nno space left\\n'); sys.stderr.flush(); os._exit(7)", "exit code 7 .*: no space left$"),
    "a child holds the pipes": ("import os, time\nif os.fork(): os._exit(0)\ntime.sleep(60)", "exit code 0"),
    "cut short": (
        FORGE + "frame = frame[:-1]\n" + PRIVATE + "list(private())\nos._exit(0)",
        "exit code 0",
    ),
    "noise in the channel": (FORGE + "frame = b'noise' * 100\n" + PRIVATE + "list(private())", NOISE),
    "endless": (
        "import os, struct; frame = struct.pack('>cIQ', b'=', 1, 2**60)\n" + PRIVATE + "list(private())",
        NOISE,
    ),
}  # fmt: skip

needs_posix = pytest.mark.skipif(os.name == "nt", reason="signals and fork are not there")


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """Workers that find ``worker_functions``."""
    monkeypatch.setenv("PYTHONPATH", str(Path(worker_functions.__file__).parent))
    monkeypatch.syspath_prepend(str(Path(worker_functions.__file__).parent))
    return WorkerKind(
        Path(sys.executable), "worker_functions:run", variables_for_release(tmp_path), tmp_path, 2.0, like_this=True
    )


@needs_posix
@pytest.mark.parametrize(("code", "reason"), ENDS.values(), ids=ENDS)
def test_an_end_is_no_answer(kind, code, reason):
    start = time.monotonic()
    (answer,) = ask_all(kind, [code.encode()], 1)
    assert isinstance(answer[1], WorkerLostError)
    with pytest.raises(WorkerLostError, match=reason):
        raise answer[1]
    assert time.monotonic() - start < 40  # and none waits for a sleep of a minute


@needs_posix
def test_one_that_is_lost_takes_no_other_with_it(kind):
    codes = [code for code, _ in ENDS.values() if "sleep" not in code and "while" not in code]
    requests = [one for code in codes for one in (code, "answer = b'fine'")]
    answers = dict(ask_all(kind, [request.encode() for request in requests], 2))
    assert [answers[index] for index in range(1, len(requests), 2)] == [b"fine"] * len(codes)
    assert all(isinstance(answers[index], WorkerLostError) for index in range(0, len(requests), 2))


OUTPUT = {
    "print": 'print(\'{"status": "passed"}\')',
    "stdout": "import sys; sys.stdout.buffer.write(frame); sys.__stdout__.flush()",
    "file descriptor 1": "os.write(1, frame)",
    "a process": "import subprocess; subprocess.run(['echo', 'forged'])",
    "as much as a pipe holds": "print('x' * 10_000_000)",
    "as much on stderr": "import sys; sys.stderr.write('x' * 10_000_000)",
}


@needs_posix
@pytest.mark.parametrize("code", OUTPUT.values(), ids=OUTPUT)
def test_what_is_printed_is_no_answer(kind, code):
    (answer,) = ask_all(kind, [f"{FORGE}{code}\nanswer = b'true'".encode()], 1)
    assert answer == (0, b"true")


def test_there_is_nothing_to_read(kind):
    (answer,) = ask_all(kind, [b"import sys; answer = sys.stdin.read().encode() + b'.'"], 1)
    assert answer == (0, b".")


@needs_posix
def test_an_answer_to_another_request_is_none(kind):
    """A forged answer to the request before, or after, is passed over."""
    forged = FORGE.replace("b'=', 1", "b'=', 7") + PRIVATE + "list(private()); answer = b'true'"
    (answer,) = ask_all(kind, [forged.encode()], 1)
    assert answer == (0, b"true")


def test_who_stops_reading_stops_them(kind, tmp_path):
    mark = tmp_path / "finished"
    answers = ask_all(kind, [b"1", f"import time; time.sleep(1.5); open({str(mark)!r}, 'w')".encode()], 2)
    next(answers)
    answers.close()
    time.sleep(2.0)
    assert not mark.exists()


@needs_posix
def test_they_end_with_the_process_that_started_them(kind, tmp_path):
    """Also if that is killed while they work: the system then closes its end of the pipe."""
    worker = Worker(kind)
    request = b"while True: pass"
    worker._process.stdin.write(HEADER.pack(REQUEST, 1, len(request)) + request)
    worker._process.stdin.close()
    assert worker._process.wait(30) == 0
    worker.stop()


@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="this system does not tell how much memory others have"
)
@pytest.mark.parametrize(("memory", "processes"), [(None, 1), (2**40, 1), (2**27, 2), (1, 4)])
def test_one_that_has_grown_makes_room(kind, memory, processes):
    """The second request takes 256 MiB, and keeps them."""
    who, grow = "import os; answer = str(os.getpid()).encode()", "import sys; sys.kept = bytearray(b'1' * 2**28)"
    requests = [who, f"{grow}; {who}", who, who]
    answers = dict(ask_all(kind, [one.encode() for one in requests], 1, memory=memory))
    assert [answers[0] == answers[1], answers[2] == answers[3]] == [processes < 4] * 2
    assert len(set(answers.values())) == processes


def test_an_interpreter_that_is_not_there(kind, tmp_path):
    (answer,) = ask_all(replace(kind, python=tmp_path / "python"), [b"1"], 1)
    assert "cannot be started: No such file" in str(answer[1])


@pytest.mark.parametrize(
    ("cores", "jobs", "threads"), [(8, 1, "8"), (8, 3, "2"), (2, 8, "1"), (None, 4, "1"), (4, 0, "4")]
)
def test_processes_that_work_at_once_share_the_cores(cores, jobs, threads, kind, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    quiet = replace(kind, variables={"PATH": "p"})
    assert sharing_cores(quiet, jobs).variables == {"PATH": "p", "OMP_NUM_THREADS": threads}
    told = replace(kind, variables={"OMP_NUM_THREADS": "5"})
    assert sharing_cores(told, jobs).variables == told.variables
