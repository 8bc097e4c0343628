"""The contenders' command as a cell: what it writes, and each way in which it ends without."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tools.gpu import contenders
from tools.gpu.cells import OUT_OF_TIME, NotRun, Setting, Wrong
from tools.gpu.contenders import bench, medians

FAKE = (sys.executable, str(Path(__file__).with_name("fake_bench.py")))
CPU = Setting("cpu", True)
ALL = {
    "512 A: peft ms": 2.5, "512 A: peft MiB": 3.0, "512 A: liger": "it is not installed",
    "4096 A: peft ms": 2.5, "4096 A: peft MiB": 3.0, "4096 A: liger": "it is not installed",
}  # fmt: skip


def test_medians_peaks_and_reasons():
    assert bench(CPU, [], 60.0, [*FAKE, "passes"]) == ALL


def test_what_it_had_is_kept(monkeypatch):
    assert bench(CPU, [], 60.0, [*FAKE, "fails late"]) == {**ALL, "ended": "exit code 1"}
    monkeypatch.setattr(contenders, "_LAST_WORDS", 1.0)
    assert bench(CPU, [], 3.0, [*FAKE, "hangs"]) == {**ALL, "ended": "stopped after 3 s"}


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("unknown", Wrong, "command not known"),
        ("fails", Wrong, "exit code 1: RuntimeError: out of luck"),
        ("none ran", NotRun, "512 A: liger: it is not installed"),
    ],
)
def test_a_command_without_times(how, error, said):
    with pytest.raises(error, match=said):
        bench(CPU, [], 60.0, [*FAKE, how])


def test_there_is_no_time_left():
    with pytest.raises(NotRun, match=OUT_OF_TIME):
        bench(Setting("cpu", True, time.monotonic() + 10), [], 60.0, [*FAKE, "passes"])


def test_no_time_is_never_a_number():
    record = {
        "cells": [{"cell": {"tokens": 1, "precision": "B"}, "contenders": [{"contender": "peft", "step_ms": None}]}]
    }
    assert medians(record) == {"1 B: peft": "no time"}
