"""The clock, on a device that is made up: what is waited for and what is counted, in which order."""

from __future__ import annotations

import pytest
import torch

from patchkit.testing.contenders import measuring
from patchkit.testing.contenders.measuring import Clock, Sample


class Device:
    """Notes what it is asked. Its time goes on by one at each event, and a run takes bytes."""

    def __init__(self):
        self.said, self.now, self.bytes, self.most = [], 0.0, 100, 999

    def Event(self, *, enable_timing):  # noqa: N802  (torch calls it so)
        assert enable_timing
        device = self

        class Event:
            def record(self):
                device.now += 1
                self.at = device.now
                device.said.append("event")

            def elapsed_time(self, later):
                assert device.said[-1] == "synchronize"  # before that an event has no time
                return later.at - self.at

        return Event()

    def synchronize(self):
        self.said.append("synchronize")

    def empty_cache(self):
        self.said.append("empty_cache")

    def memory_allocated(self):
        return self.bytes

    def reset_peak_memory_stats(self):
        self.most = self.bytes

    def max_memory_allocated(self):
        return self.most


class Run:
    def __init__(self, device):
        self.device = device

    def clear(self):
        self.device.said.append("clear")

    def forward(self):
        self.device.said.append("forward")
        self.device.now += 4
        self.device.most = max(self.device.most, self.device.bytes + 40)
        return ()

    def backward(self, outputs):
        self.device.said.append("backward")
        self.device.now += 9


@pytest.fixture
def device(monkeypatch):
    made = Device()
    monkeypatch.setattr(measuring.torch, "get_device_module", lambda name: made)
    return made


STEP = ["clear", "synchronize", "event", "forward", "event", "backward", "event", "synchronize"]


def test_a_step_on_a_device(device):
    clock = Clock(Run(device), "cuda", 0.0)
    assert clock.step() == Sample(5.0, 10.0)
    assert device.said == STEP


def test_a_sample_warms_up_and_hands_memory_back(device):
    clock = Clock(Run(device), "cuda:0", 0.0)
    assert clock.sample() == Sample(5.0, 10.0)
    assert device.said == [*STEP * 3, "clear", "empty_cache"]  # warm, how long it takes, and one that counts
    device.said.clear()
    clock.sample()
    assert device.said == [*STEP * 2, "clear", "empty_cache"]


def test_a_sample_of_short_steps_has_several(device):
    clock = Clock(Run(device), "cuda", 1e9)
    clock.sample()
    assert device.said.count("forward") == 2 + measuring._MOST_STEPS


def test_the_peak_is_beyond_what_was_there(device):
    assert Clock(Run(device), "cuda", 0.0).measured_peak() == 40
    assert Clock(Run(device), "cpu", 0.0).measured_peak() is None
    assert Clock(Run(device), "cpu", 0.0).launches() is None


def test_on_a_cpu_both_halves_take_time():
    class Slow(Run):
        def forward(self):
            return torch.ones(1)

    sample = Clock(Slow(Device()), "cpu", 0.0).sample()
    assert min(sample) >= 0
    assert Clock(Slow(Device()), "cpu", 0.0).host_microseconds() >= 0


def test_the_hosts_time_on_a_device_waits_before_each_step(device):
    Clock(Run(device), "cuda", 0.0).host_microseconds()
    assert device.said == ["clear", "synchronize", "forward", "backward"] * (measuring._HOST_STEPS + 1)
