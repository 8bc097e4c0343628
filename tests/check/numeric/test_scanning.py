"""Every type that is asked for has an outcome, whatever its process does."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from patchkit.check.numeric import scanning
from patchkit.check.numeric.model_types import TypeOutcome
from patchkit.check.numeric.remembered import Remembered
from patchkit.check.numeric.scanning import DEFAULT_HEADS, EACH, scan_types
from patchkit.errors import ReleaseEnvironmentError, UnknownModelTypeError, WorkerLostError
from patchkit.processes.workers import WorkerKind
from patchkit.testing.tiny.heads import HEADS

TYPES = {"causal": ["bert", "llama", "llama4"], "encoder": ["bert", "roberta"]}


class Environment:
    """An environment whose processes answer what a test says; ``said``: whether the user says how many threads."""

    said = False

    def kind(self, folder, function, seconds):
        return WorkerKind(Path("python"), function, {"OMP_NUM_THREADS": "7"} if self.said else {}, folder, seconds)


class Worker:
    said: bytes | Exception = b""
    stopped = 0

    def __init__(self, kind):
        self.kind = kind

    def ask(self, request):
        if isinstance(type(self).said, Exception):
            raise type(self).said
        return type(self).said

    def stop(self):
        type(self).stopped += 1


@pytest.fixture
def processes(monkeypatch):
    """What the first process says of the types, and the others of each request."""
    answers = {}

    def ask_all(kind, requests, jobs, first, *, memory):
        for index in reversed(range(len(requests))):
            asked = json.loads(requests[index])
            good = TypeOutcome(asked["model_type"], asked["head"], "verified").to_json()
            yield index, answers.get((asked["model_type"], asked["head"]), json.dumps(good).encode())

    @contextmanager
    def folder():
        yield "a folder"

    monkeypatch.setattr(Worker, "said", json.dumps(TYPES).encode())
    monkeypatch.setattr(Worker, "stopped", 0)
    monkeypatch.setattr(scanning, "Worker", Worker)
    monkeypatch.setattr(scanning, "ask_all", ask_all)
    monkeypatch.setattr(scanning, "empty_folder", folder)
    return answers


def scanned(*patterns, **options):
    return sorted(
        (one.model_type, one.head) for one in scan_types(Environment(), list(TYPES), patterns, seconds=1.0, **options)
    )


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (
            (),
            [
                ("bert", "causal"),
                ("bert", "encoder"),
                ("llama", "causal"),
                ("llama4", "causal"),
                ("roberta", "encoder"),
            ],
        ),
        (("llama",), [("llama", "causal")]),
        (("llama*",), [("llama", "causal"), ("llama4", "causal")]),
        (("bert",), [("bert", "causal")]),
        (("*bert*",), [("bert", "causal"), ("roberta", "encoder")]),
        (("roberta", "llama", "llama"), [("llama", "causal"), ("roberta", "encoder")]),
    ],
)
def test_what_is_asked_for_is_examined_once(processes, patterns, expected):
    assert scanned(*patterns) == expected


def test_progress_is_told(processes):
    told = []
    scanned("llama*", progress=lambda done, of: told.append((done, of)))
    assert told == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("patterns", [("lama",), ("llama", "nothing*")])
def test_an_unknown_type_is_an_error(processes, patterns):
    with pytest.raises(UnknownModelTypeError, match=r"no model type matches .* under causal, encoder"):
        scanned(*patterns)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (WorkerLostError("it was killed"), "its process was lost: it was killed"),
        (b"{", "its process sent what is no outcome"),
        (b"[]", "its process sent what is no outcome: it has other fields"),
        (json.dumps(TypeOutcome("bert", "causal", "verified").to_json()).encode(), "it is of bert"),
        (json.dumps(TypeOutcome("llama", "encoder", "verified").to_json()).encode(), "it is of llama"),
    ],
)
def test_a_process_that_says_nothing_is_no_pass(processes, said, reason):
    processes["llama", "causal"] = said
    outcomes = {one.model_type: one for one in scan_types(Environment(), list(TYPES), ["llama*"], seconds=1.0)}
    assert outcomes["llama4"].state == "verified"
    assert outcomes["llama"].state == "not run"
    assert reason in outcomes["llama"].reason
    assert outcomes["llama"].head == "causal"


@pytest.mark.parametrize(
    "said", [WorkerLostError("gone"), b"{", b"[]", b'{"causal": []}', b'{"causal": 1, "encoder": 2}'], ids=str
)
def test_without_types_there_is_nothing_to_scan(processes, said, monkeypatch):
    monkeypatch.setattr(Worker, "said", said)
    with pytest.raises(ReleaseEnvironmentError, match="no process says which model types"):
        scanned()
    assert Worker.stopped == 1


def test_the_default_heads_exist():
    assert list(DEFAULT_HEADS) == list(HEADS)
    assert set(EACH) < set(HEADS)


def test_other_types_are_examined_under_their_first_head(processes, monkeypatch):
    types = {"causal": ["bert"], "vision": ["clip", "vit"], "base": ["bert", "clip", "sam"], "part": ["sam_part"]}
    monkeypatch.setattr(Worker, "said", json.dumps(types).encode())
    found = [(one.model_type, one.head) for one in scan_types(Environment(), list(types), seconds=1.0)]
    expected = [("bert", "causal"), ("clip", "vision"), ("sam", "base"), ("sam_part", "part"), ("vit", "vision")]
    assert sorted(found) == expected


# ---- what is remembered


@pytest.fixture
def asked(processes, monkeypatch):
    """The types that processes were asked for, in the order of the requests."""
    asked = []
    inner = scanning.ask_all

    def ask_all(kind, requests, jobs, first, *, memory):
        asked.extend(json.loads(request)["model_type"] for request in requests)
        return inner(kind, requests, jobs, first, memory=memory)

    monkeypatch.setattr(scanning, "ask_all", ask_all)
    return asked


def test_a_second_scan_starts_no_process(asked, own_cache, monkeypatch):
    first = scanned(remembered=Remembered("a setting"))
    assert len(asked) == 5
    monkeypatch.setattr(Worker, "said", WorkerLostError("it must not be asked"))
    assert scanned(remembered=Remembered("a setting")) == first
    assert scanned("llama*", remembered=Remembered("a setting")) == [("llama", "causal"), ("llama4", "causal")]
    assert len(asked) == 5


@pytest.mark.parametrize("done", [1, 3])
def test_a_scan_that_was_stopped_goes_on(done, asked, own_cache):
    scan = scan_types(Environment(), list(TYPES), seconds=1.0, remembered=Remembered("a setting"))
    before = [next(scan) for _ in range(done)]
    scan.close()
    asked.clear()
    told = []
    after = list(
        scan_types(
            Environment(),
            list(TYPES),
            seconds=1.0,
            remembered=Remembered("a setting"),
            progress=lambda done, of: told.append((done, of)),
        )
    )
    assert after[:done] == sorted(before, key=lambda one: (one.head, one.model_type))
    assert len(asked) == 5 - done
    assert told == [(count, 5) for count in range(6)]


def test_what_is_not_lasting_is_run_again(asked, processes, own_cache):
    processes["llama", "causal"] = WorkerLostError("it took longer than 1 s and was stopped")
    processes["bert", "causal"] = b"no outcome"
    different = TypeOutcome("llama4", "causal", "different", "in float64: it differs")
    processes["llama4", "causal"] = json.dumps(different.to_json()).encode()
    scanned(remembered=Remembered("a setting"))
    asked.clear()
    scanned(remembered=Remembered("a setting"))
    assert asked == ["bert", "llama", "llama4"]


def test_without_memory_every_type_is_run(asked, own_cache):
    for _ in range(2):
        scanned()
    assert len(asked) == 10


# ---- what is on record


class Record:
    """The record of a release in which one type is known."""

    def types(self, heads):
        return None

    def outcome(self, model_type, head):
        return TypeOutcome(model_type, head, "verified", seen_in="5.0.0") if model_type == "llama" else None


def test_what_is_on_record_is_not_run(processes, monkeypatch):
    monkeypatch.setitem(processes, ("llama", "causal"), WorkerLostError("it was asked"))
    outcomes = list(scan_types(Environment(), list(TYPES), ["llama*"], seconds=1.0, recorded=Record()))
    assert [(one.model_type, one.state, one.seen_in) for one in outcomes] == [
        ("llama", "verified", "5.0.0"),
        ("llama4", "verified", ""),
    ]


def test_types_that_are_on_record_are_not_asked_for(processes, monkeypatch):
    monkeypatch.setattr(Worker, "said", WorkerLostError("it was asked"))
    record = Record()
    record.types = lambda heads: {"causal": ["llama"], "encoder": []}
    (outcome,) = scan_types(Environment(), list(TYPES), seconds=1.0, recorded=record)
    assert outcome.seen_in == "5.0.0"


def test_options_of_apply_are_in_every_request(processes, monkeypatch):
    found = []
    ask_all = scanning.ask_all

    def spy(kind, requests, *given, **options):
        found.extend(json.loads(request) for request in requests)
        return ask_all(kind, requests, *given, **options)

    monkeypatch.setattr(scanning, "ask_all", spy)
    for options in ({"loss": True}, {}):
        found.clear()
        list(scan_types(Environment(), list(TYPES), ["llama"], seconds=1.0, options=options))
        assert found == [{"model_type": "llama", "head": "causal", **({"options": options} if options else {})}]


@pytest.mark.parametrize(
    ("jobs", "said", "threads"), [(1, False, "8"), (3, False, "2"), (9, False, "1"), (3, True, "7")]
)
def test_processes_share_the_cores(jobs, said, threads, processes, monkeypatch):
    """Unless the user says how many threads each has."""
    found, ask_all, environment = [], scanning.ask_all, Environment()
    environment.said = said
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(scanning, "ask_all", lambda kind, *a, **o: found.append(kind) or ask_all(kind, *a, **o))
    list(scan_types(environment, list(TYPES), ["llama"], seconds=1.0, jobs=jobs))
    assert found[0].variables == {"OMP_NUM_THREADS": threads}
