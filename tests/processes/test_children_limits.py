"""Processes for a piece of work: each of their limits on both sides, how they are interrupted, and what is left of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from patchkit.processes import children
from patchkit.processes.children import (
    ChildError,
    all_stopped,
    how_it_ended,
    is_stopping,
    last_line,
    run_child,
    stop,
    without_interruptions,
)

posix = pytest.mark.skipif(os.name == "nt", reason="there are no signals of POSIX")


def run(code: str, *, seconds: float = 60.0, **options):
    return run_child([sys.executable, "-S", "-c", code], seconds=seconds, environment=os.environ, **options)


# ---- what it said


@pytest.mark.parametrize(("written", "read"), [
    (b"", ""), (b"a\r\nb\n", "a\nb\n"), (b"a\rb", "a\rb"), (b"h\xc3\xb6her", "höher"), (b"\xff.", "\ufffd."),
])  # fmt: skip
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_written_is_read_as_text(stream: str, written: bytes, read: str) -> None:
    done = run(f"import sys; sys.{stream}.buffer.write({written!r})")
    assert (done.output, done.said) == ((read, "") if stream == "stdout" else ("", read))
    assert done.code == 0


def test_a_long_answer_is_whole_and_an_endless_one_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's list of an index is a megabyte or two."""
    assert len(run("print('x' * 2**22, end='')").output) == 2**22
    assert children._SAID_LIMIT <= 64 * 2**20
    monkeypatch.setattr(children, "_SAID_LIMIT", 10)
    assert run("print('x' * 11, end='')").output == "x" * 10


def test_it_cannot_be_asked_for_anything() -> None:
    assert run("import sys; print(repr(sys.stdin.read()))").output == "''\n"


# ---- limits


def files(folder: Path, *sizes: int) -> Path:
    for number, size in enumerate(sizes):
        path = folder / "deep" / str(number) / "file"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size)
    return folder


@pytest.mark.parametrize("limit", [299, 300, 301])
def test_how_much_it_may_write(limit: int, tmp_path: Path) -> None:
    """All files of the folder together, wherever in it they are."""
    folder = files(tmp_path, 100, 200)
    if limit < 300:
        with pytest.raises(ChildError, match="it fetched more than 0 MiB"):
            run("import time; time.sleep(20)", folder=folder, limit=limit)
    else:
        assert run("import time; time.sleep(0.3)", folder=folder, limit=limit).code == 0


def test_without_a_folder_nothing_is_counted() -> None:
    assert run("import time; time.sleep(0.3)", limit=0).code == 0


def test_the_limit_is_said_in_mebibytes(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="it fetched more than 3 MiB"):
        run("import time; time.sleep(20)", folder=files(tmp_path, 3 * 2**20 + 1), limit=3 * 2**20)


def test_a_file_that_is_renamed_while_it_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = files(tmp_path, 10, 20), os.walk
    monkeypatch.setattr(os, "walk", lambda top: ((place, [], ["gone", *names]) for place, _, names in real(top)))
    assert children._size(folder) == 30


@pytest.mark.parametrize(("later", "in_time"), [(59.9, True), (60.0, True), (60.1, False)])
def test_the_second_at_which_it_took_too_long(later: float, in_time: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0])
    monkeypatch.setattr(children, "time", SimpleNamespace(monotonic=lambda: next(times, 100.0 + later)))
    if in_time:
        assert run("import time; time.sleep(0.3)").code == 0
    else:
        with pytest.raises(ChildError, match="it was not done after 60 s"):
            run("import time; time.sleep(20)")


def test_one_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        run_child([str(tmp_path / "none")], seconds=1.0, environment={})
    assert not children._running


# ---- interruption


@posix
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_runs_is_ended_and_nothing_starts(error) -> None:
    """In whichever thread; and afterwards processes run as before."""
    found = []

    def work() -> None:
        try:
            found.append(run("import time; time.sleep(30)").code)
        except ChildError as stopped:
            found.append(str(stopped))

    thread = threading.Thread(target=work)
    thread.start()
    while not children._running:
        time.sleep(0.01)
    assert not is_stopping()
    start = time.monotonic()
    try:
        with all_stopped():
            thread.join(10)
            assert is_stopping()
            with pytest.raises(ChildError, match="it was interrupted"):
                run("import time; time.sleep(30)")
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert time.monotonic() - start < 10
    assert found in ([-signal.SIGKILL], ["it was interrupted"])
    assert not is_stopping()
    assert not children._running
    assert run("pass").code == 0


@posix
@pytest.mark.parametrize("error", [None, ValueError])
def test_interruptions_are_held_back_for_the_time(error) -> None:
    def blocked() -> bool:
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    assert not blocked()
    try:
        with without_interruptions():
            assert blocked()
            mask = run("import signal; print(2 in signal.pthread_sigmask(signal.SIG_BLOCK, []))").output
            if error:
                raise error
    except ValueError:
        pass
    assert mask == "True\n", "what is started in this time gets none either"
    assert not blocked()


@posix
def test_an_interruption_that_was_held_back_is_not_lost() -> None:
    reached = []

    def interrupted() -> None:
        with without_interruptions():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # this very thread: others hold nothing back
            reached.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind it ignores them
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached


def test_where_nothing_can_be_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "pthread_sigmask", raising=False)
    with without_interruptions():
        pass


@posix
@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
def test_a_process_that_is_gone_is_stopped(error, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS says so by the second of these."""

    def fail(*_):
        raise error

    process = children.start([sys.executable, "-S", "-c", "pass"], os.environ)
    process.wait()
    monkeypatch.setattr(os, "killpg", fail)
    stop(process)


# ---- words


ENDS = {
    None: "its process ended with exit code None before it had answered",
    0: "its process ended with exit code 0 before it had answered",
    1: "its process ended with exit code 1 before it had answered",
    -1: "its process was killed (SIGHUP)",
    -9: "its process was killed (SIGKILL; that is what happens where memory runs out)",
    -11: "its process was killed (SIGSEGV)",
    -15: "its process was killed (SIGTERM)",
    -200: "its process was killed (signal 200)",
}


@posix
@pytest.mark.parametrize("code", ENDS)
def test_each_end_in_words(code: int | None) -> None:
    assert how_it_ended(code) == ENDS[code]


LAST = {
    "": "it said nothing", " \n\t\n": "it said nothing", "a": "a", "a\nb": "b", "a\n  b  \n": "b", "a\n \n\n": "a",
    "a\r\nb\r\n": "b",
}  # fmt: skip


@pytest.mark.parametrize("text", LAST, ids=repr)
def test_the_last_line(text: str) -> None:
    assert last_line(text) == LAST[text]
