"""Rooms whose tests take seconds: one that takes minutes waits for something that does not come, and fails.

Not for every room: patchkit leaves the timer of a program around it alone, so that with this one an endless plugin is
never interrupted.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

_SECONDS = 400.0


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that hangs fails, at the place where it hangs, and holds up no other."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(*_: object) -> None:
        pytest.fail(f"it took longer than {_SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS, 10.0)  # again, in case that something swallows the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
