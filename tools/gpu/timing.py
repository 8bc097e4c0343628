"""Times of single operations: of the device where there is one, of the clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_QUEUE_CYCLES = 2_000_000
"""About a millisecond in which the host gets ahead, so that launches are not what is timed."""


def microseconds(work: Callable[[], object], device: str, *, repeats: int = 20, warm: int = 5) -> float:
    """The median time of a call, µs.

    On CUDA events around each call, behind a queue that is not empty; elsewhere the clock, with a wait at both ends.

    Args:
        work: what is timed; called ``warm + repeats`` times.
        device: as torch names it.
        repeats: samples.
        warm: calls before them.
    """
    for _ in range(warm):
        work()
    _wait(device)
    return statistics.median(_sample(work, device) for _ in range(repeats))


def _sample(work: Callable[[], object], device: str) -> float:
    if not device.startswith("cuda"):
        start = time.perf_counter()
        work()
        _wait(device)
        return (time.perf_counter() - start) * 1e6
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    sleep: Any = getattr(torch.cuda, "_sleep", None)
    if sleep is not None:
        sleep(_QUEUE_CYCLES)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) * 1e3


def _wait(device: str) -> None:
    if not device.startswith("cpu"):
        torch.get_device_module(device).synchronize()
