"""Times of single operations: of the device where there is one, of the clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

_QUEUE_CYCLES = 2_000_000
"""About a millisecond in which the host gets ahead, so that launches are not what is timed."""


class Work(NamedTuple):
    """What is timed.

    Attributes:
        run: the call.
        prepare: what precedes each call and is not timed.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


def microseconds(work: Callable[[], object], device: str, *, repeats: int = 20, warm: int = 5) -> float:
    """The median time of a call, µs.

    On CUDA events around each call, behind a queue that is not empty; elsewhere the clock, with a wait at both ends.

    Args:
        work: what is timed; called ``warm + repeats`` times.
        device: as torch names it.
        repeats: samples.
        warm: calls before them.
    """
    return statistics.median(in_turn([Work(work)], device, rounds=repeats, warm=warm)[0])


def in_turn(works: Sequence[Work], device: str, *, rounds: int, warm: int = 2, host: bool = False) -> list[list[float]]:
    """The times of several calls that take turns, µs: for each a list with a sample of every round.

    Args:
        works: what is timed. Each round begins with another one.
        device: as torch names it.
        rounds: samples of each.
        warm: rounds before them.
        host: whether the host's time counts too, on every device: the clock, with a wait at both ends.
    """
    samples: list[list[float]] = [[] for _ in works]
    for number in range(warm + rounds):
        for index in range(len(works)):
            chosen = (number + index) % len(works)
            took = _sample(works[chosen], device, host=host)
            if number >= warm:
                samples[chosen].append(took)
    return samples


def _sample(work: Work, device: str, *, host: bool) -> float:
    run, prepare = work
    if host or not device.startswith("cuda"):
        if prepare is not None:
            prepare()
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        return (time.perf_counter() - start) * 1e6
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    sleep: Any = getattr(torch.cuda, "_sleep", None)
    if sleep is not None:
        sleep(_QUEUE_CYCLES)
    if prepare is not None:
        prepare()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) * 1e3


def _wait(device: str) -> None:
    if not device.startswith("cpu"):
        torch.get_device_module(device).synchronize()
