"""Calls that are timed in turn, by a clock that the test turns."""

from __future__ import annotations

import pytest
import torch

from patchkit.tuning import timing
from patchkit.tuning.timing import Work, in_turn, microseconds


class Clock:
    """Seconds that pass only where a call says so; and what was called, in order."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def work(self, name: str, *seconds: float, prepared: float | None = None) -> Work:
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        def prepare() -> None:
            self.calls.append(f"prepare {name}")
            self.now += prepared

        return Work(run, None if prepared is None else prepare)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


def test_works_take_turns_and_each_round_begins_with_another(clock: Clock) -> None:
    samples = in_turn([clock.work("a", 1.0), clock.work("b", 2.0)], "cpu", rounds=2, warm=1)
    assert samples == [[1e6, 1e6], [2e6, 2e6]]
    assert clock.calls == ["a", "b", "b", "a", "a", "b"]


def test_what_prepares_is_not_timed(clock: Clock) -> None:
    assert in_turn([clock.work("a", 0.5, prepared=7.0)], "cpu", rounds=1, warm=0) == [[0.5e6]]
    assert clock.calls == ["prepare a", "a"]


def test_the_median_without_the_first_calls(clock: Clock) -> None:
    run = clock.work("a", 9.0, 9.0, 1.0, 5.0, 2.0).run
    assert microseconds(run, "cpu", repeats=3, warm=2) == 2e6


def test_a_device_is_timed_by_events_behind_a_queue(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """The part of it that needs no device: in which order a device is told what."""
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 0.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: said.append("sleep"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    works = [Work(lambda: said.append("run"), lambda: said.append("prepare"))]
    assert in_turn(works, "cuda", rounds=1, warm=0) == [[250.0]]
    assert said == ["sleep", "prepare", "event", "run", "event", "wait"]
    said.clear()
    assert in_turn([clock.work("a", 3.0)], "cuda", rounds=1, warm=0, host=True) == [[3e6]]
    assert said == ["wait", "wait"]
