"""The channel to a worker, byte by byte: its limits, what is passed over in it, and what the two ends keep open."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import worker_functions

from patchkit.errors import WorkerLostError
from patchkit.processes import workers
from patchkit.processes.interpreters import isolated, package_folders, variables_for_release
from patchkit.processes.isolated import ANSWER, ERROR, HEADER, REQUEST, PlacedPackages
from patchkit.processes.workers import Worker, WorkerKind, ask_all

posix = pytest.mark.skipif(os.name == "nt", reason="files of a process are numbered as POSIX does")

KIND = WorkerKind(Path("python"), "module:function", {}, Path(), 60.0)


def frame(kind: bytes, number: int, said: bytes) -> bytes:
    return HEADER.pack(kind, number, len(said)) + said


# ---- reading


FRAMES = {
    "an answer": (frame(ANSWER, 3, b"said"), (ANSWER, 3, b"said")),
    "an error": (frame(ERROR, 3, b"said"), (ERROR, 3, b"said")),
    "an empty answer": (frame(ANSWER, 3, b""), (ANSWER, 3, b"")),
    "two answers": (frame(ANSWER, 3, b"a") + frame(ANSWER, 4, b"b"), (ANSWER, 3, b"a")),
    "nothing": (b"", None),
    "a header less a byte": (frame(ANSWER, 3, b"")[:-1], None),
    "an answer less a byte": (frame(ANSWER, 3, b"said")[:-1], None),
    "a request": (frame(REQUEST, 3, b"said"), None),
    "noise": (b"noise" * 10, None),
    "as large as may be": (frame(ANSWER, 3, b"x" * 100), (ANSWER, 3, b"x" * 100)),
    "a byte larger": (frame(ANSWER, 3, b"x" * 101), None),
}


@pytest.mark.parametrize("case", FRAMES)
def test_what_is_an_answer(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_ANSWER_LIMIT", 100)
    sent, expected = FRAMES[case]
    assert workers._answer(io.BytesIO(sent)) == expected


GREETING = b"greeting\n"
BEFORE = {
    "nothing": (b"", True),
    "a line": (b"a\n", True),
    "a line without its end": (b"a", True),
    "lines just short of the limit": (b"x" * 49 + b"\n" + b"x" * 48 + b"\n", True),
    "as much as the limit": (b"x" * 49 + b"\n" + b"x" * 49 + b"\n", False),
    "more": (b"x" * 149 + b"\n", False),
}


@pytest.mark.parametrize("case", BEFORE)
def test_what_may_stand_before_the_greeting(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_JUNK_LIMIT", 100)
    before, found = BEFORE[case]
    stream = io.BytesIO(before + GREETING + b"after")
    assert workers._skip_to(stream, GREETING) is found
    if found:
        assert stream.read() == b"after"
    assert workers._skip_to(io.BytesIO(before), GREETING) is False


def test_there_is_room_for_what_is_really_said() -> None:
    """Warnings of a site that is set up on every start; an outcome of every architecture."""
    assert 2**16 <= workers._JUNK_LIMIT <= 2**24
    assert 2**20 <= workers._ANSWER_LIMIT <= 2**28
    assert 200 <= workers._SAID_LIMIT <= 10_000
    assert 4096 <= workers._SAID_CHUNKS * 4096 <= 2**20


# ---- a worker without a process


class Process:
    """What stands in for a process: a test says what it answers and when it ends."""

    def __init__(self) -> None:
        pipes = [os.pipe() for _ in range(2)]
        self.stdout, self.stderr = (os.fdopen(read, "rb") for read, _ in pipes)
        self.answers, self.says = (os.fdopen(write, "wb", buffering=0) for _, write in pipes)
        self.code: int | None = None
        self.asked: list[tuple[bytes, int, bytes]] = []
        self.stdin = self
        self.pid = 0
        self.closed = False
        self._answer = iter(())

    # standard input

    def write(self, message: bytes) -> None:
        if message.endswith(b"\n") and len(message) == 65:
            self.answers.write(b"junk" + message)
            return
        kind, number, size = HEADER.unpack(message[: HEADER.size])
        self.asked.append((kind, number, message[HEADER.size :]))
        assert len(message) == HEADER.size + size
        for answer in next(self._answer, ()):
            self.answers.write(answer)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    # the process

    def poll(self) -> int | None:
        return self.code

    def wait(self, seconds: float | None = None) -> int:
        if self.code is None:
            raise subprocess.TimeoutExpired("process", seconds or 0)
        return self.code

    def will_answer(self, *answers: list[bytes]) -> None:
        """What it sends for each request."""
        self._answer = iter(answers)

    def ends(self, code: int, *, last_words: bytes = b"") -> None:
        self.code = code
        self.says.write(last_words)
        self.says.close()
        self.answers.close()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch):
    made = Process()
    made.stopped = 0

    def stop(process) -> None:
        process.stopped += 1

    monkeypatch.setattr(workers, "start", lambda *args, **kwargs: made)
    monkeypatch.setattr(workers, "stop", stop)
    yield made
    for end in (made.answers, made.says):
        end.close()


STATUS = {
    # what the system says of a process's memory, in pages, and how many of these it has; 0 where that is not told
    "told": ("100 25 3", 25),
    "no such file": (None, 0),
    "nothing": ("", 0),
    "one number alone": ("100", 0),
    "no numbers": ("100 many", 0),
}


@pytest.mark.parametrize("case", STATUS)
def test_the_memory_of_a_process(case: str, process, monkeypatch: pytest.MonkeyPatch) -> None:
    said, pages = STATUS[case]

    def opened(path: str, mode: str) -> io.BytesIO:
        assert (path, mode) == ("/proc/7/statm", "rb")
        if said is None:
            raise FileNotFoundError(path)
        return io.BytesIO(said.encode())

    process.pid = 7
    worker = Worker(KIND)
    monkeypatch.setattr(workers, "open", opened, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}[name], raising=False)
    assert worker.memory == pages * 4096
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert worker.memory == 0


def test_requests_are_numbered(process) -> None:
    worker = Worker(KIND)
    process.will_answer(*([frame(ANSWER, number, b"%d" % number)] for number in (1, 2, 3)))
    assert [worker.ask(request) for request in (b"a", b"", b"ccc")] == [b"1", b"2", b"3"]
    assert process.asked == [(REQUEST, 1, b"a"), (REQUEST, 2, b""), (REQUEST, 3, b"ccc")]
    assert worker.alive
    worker.stop()


@pytest.mark.parametrize("number", [0, 1, 3, 7])
@pytest.mark.parametrize("kind", [ANSWER, ERROR], ids=["answer", "error"])
def test_what_is_sent_for_another_request_is_passed_over(kind: bytes, number: int, process) -> None:
    """What a release prints into the channel ahead of time, or what was left of the request before."""
    worker = Worker(KIND)
    process.will_answer(
        [frame(ANSWER, 1, b"first"), frame(kind, number, b"forged")],
        [frame(kind, number, b"forged"), frame(ANSWER, 2, b"second")],
    )
    assert [worker.ask(b"") for _ in range(2)] == [b"first", b"second"]
    worker.stop()


@pytest.mark.parametrize("said", [b"TypeError: no", b"", b"\xff", b"x" * 5000], ids=["text", "empty", "bytes", "long"])
def test_an_error_is_told_and_the_worker_goes_on(said: bytes, process) -> None:
    worker = Worker(KIND)
    process.will_answer([frame(ERROR, 1, said)], [frame(ANSWER, 2, b"fine")])
    with pytest.raises(WorkerLostError) as lost:
        worker.ask(b"")
    assert str(lost.value) == said[:2000].decode("utf-8", "replace")
    assert worker.alive
    assert worker.ask(b"") == b"fine"
    worker.stop()


@pytest.mark.parametrize(("words", "reason"), [
    (b"", "its process ended with exit code 3 before it had answered"),
    (b" \n", "its process ended with exit code 3 before it had answered"),
    (b"first\nlast \n", "its process ended with exit code 3 before it had answered: last"),
    (b"x" * 9000, "its process ended with exit code 3 before it had answered: " + "x" * 2000),
])  # fmt: skip
def test_last_words_are_waited_for(words: bytes, reason: str, process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads them may be slower than whoever sees the end."""
    real = Worker._listen

    def slow(worker: Worker) -> None:
        time.sleep(0.2)
        real(worker)

    monkeypatch.setattr(Worker, "_listen", slow)
    worker = Worker(KIND)
    process.ends(3, last_words=words)
    with pytest.raises(WorkerLostError) as lost:
        worker.ask(b"")
    assert str(lost.value) == reason
    assert not worker.alive
    assert process.stopped == 1


def test_noise_of_a_process_that_goes_on_is_its_end(process) -> None:
    worker = Worker(KIND)
    process.will_answer([b"noise" * 10])
    with pytest.raises(WorkerLostError, match=r"^its process sent what is no answer$"):
        worker.ask(b"")
    assert process.stopped == 1
    assert not worker.alive


def test_one_that_went_while_something_holds_its_pipe(process) -> None:
    """What it sent before counts; else it is lost long before the time of a request is over."""
    worker = Worker(replace(KIND, seconds=600.0))
    process.will_answer([frame(ANSWER, 1, b"fine")])
    process.code = 0
    assert worker.ask(b"") == b"fine"
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match="exit code 0"):
        worker.ask(b"")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("later", [60.0, 60.1, 1000.0])
def test_the_second_at_which_it_took_too_long(later: float, process, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, *[100.0 + later] * 9])
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: next(times)))
    worker = Worker(KIND)
    with pytest.raises(WorkerLostError, match=r"^it took longer than 60 s and was stopped$"):
        worker.ask(b"")
    assert process.stopped == 1


def test_it_has_all_of_its_time(process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is no end before: it is asked every second whether it is still there."""
    waited = []

    class Queue:
        def get(self, timeout: float):
            waited.append(timeout)
            if len(waited) < 4:
                raise workers.queue.Empty
            return ANSWER, 1, b"late"

        def put(self, answer: object) -> None:
            """The end of the channel, when the test is over."""

    times = iter([100.0, 100.0, 100.0, 130.0, 130.0, 159.5, 159.5, 159.9])
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: next(times)))
    worker = Worker(KIND)
    worker._answers = Queue()  # type: ignore[assignment]
    assert worker.ask(b"") == b"late"
    assert waited == pytest.approx([1.0, 1.0, 0.5, 0.1])
    worker.stop()


def test_what_it_sent_right_before_it_went_counts(process, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came between the last look at the channel and the look at the process."""
    waited = []

    class Queue:
        def get(self, timeout: float):
            waited.append(timeout)
            if len(waited) == 1:
                raise workers.queue.Empty
            return ANSWER, 1, b"last"

        def put(self, answer: object) -> None:
            """The end of the channel, when the test is over."""

    worker = Worker(replace(KIND, seconds=600.0))
    worker._answers = Queue()  # type: ignore[assignment]
    process.code = 0
    assert worker.ask(b"") == b"last"
    assert waited == [1.0, 1.0]


def test_no_thread_keeps_the_program_from_its_end(process) -> None:
    """A worker that hangs is waited for by nobody."""
    before = set(threading.enumerate())
    worker = Worker(KIND)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    assert all(thread.daemon for thread in started)
    worker.stop()


@pytest.mark.parametrize("error", [None, BrokenPipeError])
def test_it_is_stopped_once_and_its_pipe_is_closed(error, process) -> None:
    """After that its number may be another process's."""
    worker = Worker(KIND)

    def close() -> None:
        process.closed = True
        if error:
            raise error

    process.close = close
    for _ in range(3):
        worker.stop()
    assert (process.stopped, process.closed, worker.alive) == (1, True, False)


# ---- several workers


class Crowd:
    """Stands in for the class of workers, and counts how many are at work at once."""

    def __init__(self, expected: int) -> None:
        self.expected, self.busy, self.most = expected, 0, 0
        self.made: list[SimpleNamespace] = []
        self._lock, self._all = threading.Lock(), threading.Event()

    def __call__(self, kind=None, alive=True):
        one = SimpleNamespace(alive=alive, asked=[], stopped=0)

        def ask(request: bytes) -> bytes:
            with self._lock:
                assert threading.current_thread().daemon
                one.asked.append(request)
                self.busy += 1
                self.most = max(self.most, self.busy)
                if self.busy == self.expected:
                    self._all.set()
            self._all.wait(5)
            with self._lock:
                self.busy -= 1
            if request == b"lost":
                one.alive = False
                raise WorkerLostError("it is gone")
            return request.upper()

        def stop() -> None:
            one.stopped += 1
            one.alive = False

        one.ask, one.stop = ask, stop
        self.made.append(one)
        return one


@pytest.mark.parametrize("requests", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("jobs", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("first", ["no first", "a first", "a dead first"])
def test_how_many_work_at_once(first: str, jobs: int, requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one, at most as many as are wanted, and none without a request; each is stopped at the end."""
    expected = min(max(jobs, 1), requests)
    crowd = Crowd(expected)
    given = None if first == "no first" else crowd(alive=first == "a first")
    monkeypatch.setattr(workers, "Worker", crowd)
    letters = [b"abcde"[index : index + 1] for index in range(requests)]
    answers = dict(ask_all(KIND, letters, jobs, given))
    assert answers == {index: letter.upper() for index, letter in enumerate(letters)}
    assert crowd.most == expected
    hired = [one for one in crowd.made if one is not given]
    assert len(hired) == expected - (first == "a first" and expected > 0)
    assert all(one.stopped for one in crowd.made)
    assert given is None or bool(given.asked) == (first == "a first" and requests > 0)


def test_another_takes_the_place_of_one_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(1)
    monkeypatch.setattr(workers, "Worker", crowd)
    answers = dict(ask_all(KIND, [b"a", b"lost", b"b", b"c"], 1))
    assert isinstance(answers.pop(1), WorkerLostError)
    assert answers == {0: b"A", 2: b"B", 3: b"C"}
    assert [one.asked for one in crowd.made] == [[b"a", b"lost"], [b"b", b"c"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [TypeError("it is odd"), SystemExit("it is over")], ids=repr)
def test_whatever_goes_wrong_is_an_answer(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked would wait for good for a thread that is gone."""

    def fails(kind):
        raise error

    monkeypatch.setattr(workers, "Worker", fails)
    ((index, lost),) = ask_all(KIND, [b"a"], 1)
    assert (index, type(lost), str(lost)) == (0, WorkerLostError, f"{type(error).__name__}: {error}")


def test_who_stops_reading_starts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(1)
    monkeypatch.setattr(workers, "Worker", crowd)
    answers = ask_all(KIND, [b"lost"] * 50, 1)
    next(answers)
    crew = answers.gi_frame.f_locals["crew"]
    answers.close()
    assert crew._hire() is None
    assert all(one.stopped for one in crowd.made if one.alive)


def test_a_thread_that_comes_too_late_ends_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "Worker", Crowd(1))
    waiting, found = workers.queue.SimpleQueue(), workers.queue.SimpleQueue()
    for item in enumerate([b"a", b"b"]):
        waiting.put(item)
    crew = workers._Crew(KIND, waiting, found)
    crew.stop()
    crew.work(None)
    assert (waiting.qsize(), found.qsize()) == (1, 0)


# ---- the other end


def test_its_threads_keep_it_from_no_end(kind) -> None:
    code = "import threading; answer = str([t.daemon for t in threading.enumerate()[1:]]).encode()"
    worker = Worker(kind)
    assert worker.ask(code.encode()) == b"[True]"
    worker.stop()


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """Workers that find ``worker_functions``."""
    monkeypatch.setenv("PYTHONPATH", str(Path(worker_functions.__file__).parent))
    monkeypatch.syspath_prepend(str(Path(worker_functions.__file__).parent))
    return WorkerKind(
        Path(sys.executable), "worker_functions:run", variables_for_release(tmp_path), tmp_path, 60.0, like_this=True
    )


SAID = {
    "raise ValueError('  in the middle \\n')": "ValueError: in the middle",
    "raise ValueError('   ')": "ValueError",
    "raise ValueError": "ValueError",
    "raise KeyError('name')": "KeyError: 'name'",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "1 / 0": "ZeroDivisionError: division by zero",
}


def test_errors_in_words_and_a_worker_that_serves_on(kind) -> None:
    worker = Worker(kind)
    for code, words in SAID.items():
        with pytest.raises(WorkerLostError) as lost:
            worker.ask(code.encode())
        assert str(lost.value) == words
    assert worker.ask(b"answer = b'fine'") == b"fine"
    worker.stop()


@posix
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system does not list a process's files")
def test_no_file_is_left_open(kind) -> None:
    """Standard input is empty, output goes where errors go, and besides there are the two ends of the channel."""
    code = (
        "import os\n"
        "places = {}\n"
        "for fd in range(64):\n"
        "    try: places[fd] = os.readlink(f'/proc/self/fd/{fd}')\n"
        "    except OSError: pass\n"
        "inherited = [fd for fd in places if os.get_inheritable(fd)]\n"
        "import json; answer = json.dumps([places, inherited]).encode()"
    )
    worker = Worker(kind)
    places, inherited = json.loads(worker.ask(code.encode()))
    worker.stop()
    assert [fd for fd, place in places.items() if place == os.devnull] == ["0"]
    assert places["1"] == places["2"]
    assert len(places) == 5
    assert inherited == [0, 1, 2]


def helper(tmp_path: Path, code: str, *arguments: str, **setup) -> str:
    """What a module prints that an isolated interpreter runs."""
    folder = tmp_path / "site-packages"
    folder.mkdir(exist_ok=True)
    (folder / "looks_around.py").write_text(code)
    command = isolated(Path(sys.executable), "looks_around", *arguments)
    command[-2 - len(arguments)] = json.dumps(json.loads(command[-2 - len(arguments)]) | setup)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("how", ["first", "folders"])
def test_a_module_is_run_as_python_runs_one(how: str, tmp_path: Path) -> None:
    """It is the main module, its arguments are its own, and its folder is imported from."""
    code = "import sys; print(sys.argv[1:], sys.modules['__main__'].__dict__ is globals(), __name__, sys.argv[0])"
    folder = str(tmp_path / "site-packages")
    assert helper(tmp_path, code, "a", "b c", **{how: [folder]}) == (
        f"['a', 'b c'] True __main__ {folder}{os.sep}looks_around.py"
    )


def test_a_folder_of_packages_is_one_with_its_pth_files(tmp_path: Path) -> None:
    """An editable installation is a ``.pth`` file there."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "edited.py").write_text("word = 'found'\n")
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "edited.pth").write_text(f"{tmp_path / 'elsewhere'}\n")
    assert helper(tmp_path, "import edited; print(edited.word)", folders=[str(folder)]) == "found"


def test_only_the_packages_that_are_named_have_a_place(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("")
    (tmp_path / "other.py").write_text("")
    finder = PlacedPackages({"ours": str(tmp_path)})
    spec = finder.find_spec("ours")
    assert spec is not None
    assert spec.origin == str(tmp_path / "ours.py")
    assert finder.find_spec("other") is None
    assert PlacedPackages({"missing": str(tmp_path)}).find_spec("missing") is None


def test_which_folders_hold_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["site-packages", "dist-packages", "packages", "lib/site-packages"]
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    file = tmp_path / "zip" / "site-packages"
    file.parent.mkdir()
    file.touch()
    path = [*folders, file, tmp_path / "none" / "site-packages", folders[0]]
    monkeypatch.setattr(sys, "path", [str(entry) for entry in path])
    assert package_folders() == [str(tmp_path / names[index]) for index in (0, 1, 3)]


@pytest.mark.parametrize("like_this", [False, True])
def test_whose_imports_it_has(like_this: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As this process: what PYTHONPATH names by its whole path and what this process really has; else nothing."""
    here, gone = str(tmp_path / "here"), str(tmp_path / "gone")
    monkeypatch.syspath_prepend(here)
    monkeypatch.syspath_prepend("relative")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([gone, here, "relative", here, ""]))
    setup = json.loads(isolated(Path("python"), "module:function", "x", like_this=like_this)[-3])
    assert setup["first"] == ([here] if like_this else [])
    assert setup["folders"] == (package_folders() if like_this else [])
    assert (package_folders() != []) or not like_this
    command = isolated(Path("python"), "module:function", "x", "y")
    assert command[:6] == ["python", "-I", "-X", "utf8", "-W", "ignore"]
    assert command[-3:] == ["module:function", "x", "y"]
