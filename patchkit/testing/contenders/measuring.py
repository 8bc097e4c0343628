"""The clock: samples of a step on a CPU or an accelerator, its peak of memory, its launches, and the host's time."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any, NamedTuple

import torch

from patchkit.testing.contenders.runs import Run

LAUNCHES = frozenset(
    {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "hipLaunchKernel"}
    | {"hipExtLaunchKernel", "hipModuleLaunchKernel", "hipExtModuleLaunchKernel", "cudaGraphLaunch"}
)
"""What the profiler calls them."""

_MOST_STEPS = 20
_HOST_STEPS = 20


class Sample(NamedTuple):
    """Mean milliseconds of a few steps one after the other."""

    forward: float
    backward: float


class Clock:
    """Times steps of a run.

    Args:
        run: which.
        device: where it runs.
        seconds: about how long a sample takes, its warm-up not counted.
    """

    def __init__(self, run: Run, device: str, seconds: float) -> None:
        self._run, self._seconds = run, seconds
        self._device: Any = None if device.partition(":")[0] == "cpu" else torch.get_device_module(device)
        self._steps = 0

    def sample(self) -> Sample:
        """Time a few steps after one that is not counted: memory that was handed back has to be taken again."""
        self.step()
        if not self._steps:  # the step before was the first, which may have been slow
            start = time.perf_counter()
            self.step()
            taken = max(time.perf_counter() - start, 1e-6)
            self._steps = min(max(round(self._seconds / taken), 1), _MOST_STEPS)
        times = [self.step() for _ in range(self._steps)]
        self._run.clear()
        if self._device is not None:
            self._device.empty_cache()  # the other contenders' processes need it
        return Sample(statistics.fmean(one.forward for one in times), statistics.fmean(one.backward for one in times))

    def step(self) -> Sample:
        """One forward and backward."""
        self._run.clear()
        return self._step_on_host() if self._device is None else self._step_on_device()

    def _step_on_host(self) -> Sample:
        start = time.perf_counter()
        outputs = self._run.forward()
        middle = time.perf_counter()
        self._run.backward(outputs)
        end = time.perf_counter()
        return Sample((middle - start) * 1e3, (end - middle) * 1e3)

    def _step_on_device(self) -> Sample:
        start, middle, end = (self._device.Event(enable_timing=True) for _ in range(3))
        self._device.synchronize()
        start.record()
        outputs = self._run.forward()
        middle.record()
        self._run.backward(outputs)
        end.record()
        self._device.synchronize()
        return Sample(start.elapsed_time(middle), middle.elapsed_time(end))

    def measured_peak(self) -> int | None:
        """Bytes that the device's allocator gave out at most, beyond what it had before; None on a CPU."""
        if self._device is None:
            return None
        self._run.clear()
        gc.collect()
        self._device.synchronize()
        before = self._device.memory_allocated()
        self._device.reset_peak_memory_stats()
        self.step()
        return int(self._device.max_memory_allocated()) - int(before)

    def launches(self) -> int | None:
        """Kernels that a step launches, as the profiler counts them; None where it does not."""
        if self._device is None or not torch.cuda.is_available():
            return None
        from torch.profiler import ProfilerActivity, profile

        self.step()
        self._run.clear()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            self.step()
        found = sum(one.count for one in profiled.key_averages() if one.key in LAUNCHES)
        return found or None

    def host_microseconds(self) -> float:
        """Median time of a step whose tensors are so small that all is the host's work.

        On a CPU it is that which this thread worked, since others on the machine are no part of it. Backward on a
        device runs in a thread of its own, so there it is the time that passed.
        """
        clock = time.thread_time_ns if self._device is None else time.perf_counter_ns
        times = []
        for _ in range(_HOST_STEPS + 1):
            self._run.clear()
            if self._device is not None:
                self._device.synchronize()
            start = clock()
            self._run.backward(self._run.forward())
            times.append((clock() - start) / 1e3)
        return statistics.median(times[1:])  # in a model, another layer has run the same code shortly before
