"""A section in processes that die, hang or lose the device: each is one cell's, and the others are asked."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tools.gpu import running
from tools.gpu.cells import OUT_OF_TIME, Cell, NotRun, Setting, Wrong, outcome_of
from tools.gpu.places import ROOT, surroundings
from tools.gpu.table_of_sections import SECTIONS, Section
from tools.gpu.worker import MAKING

FAKE = Path(__file__).with_name("fake_worker.py")
SECTION = Section("environment", "what is here", 1.0)


def apart(*names, seconds=30.0, setting=None, section=SECTION):
    command = (sys.executable, str(FAKE), ",".join(names))
    outcomes = running.run_apart(section, setting or Setting("cpu", True), seconds, command)
    return {one["cell"]: one for one in outcomes}


@pytest.mark.parametrize(
    ("name", "said"),
    [("is killed", "killed by SIGKILL"), ("leaves", "exit code 3"), ("hangs", "it took longer than 1 s")],
)
def test_a_process_that_ends_is_one_cells_failure(name, said):
    found = apart("first", name, "after", "last")
    assert list(found) == ["first", name, "after", "last"]
    assert {cell: one["status"] for cell, one in found.items()} == {
        "first": "passed", name: "failed", "after": "passed", "last": "passed",
    }  # fmt: skip
    assert said in found[name]["reason"]
    assert found["after"]["figures"] == {"done before": 2}
    if name == "leaves":
        assert "an illegal access" in found[name]["traceback"]


def test_a_lost_device_is_left_for_another_process():
    found = apart("loses the device", "after")
    assert [one["figures"]["done before"] for one in found.values()] == [0, 1]


def test_cells_that_are_not_reached_are_recorded():
    start = time.monotonic()
    found = apart("first", "hangs", "after", seconds=0.8)
    assert time.monotonic() - start < 10
    assert found["first"]["status"] == "passed"
    assert [(found[name]["status"], found[name]["reason"]) for name in ("hangs", "after")] == [
        ("not run", OUT_OF_TIME)
    ] * 2


def test_a_worker_that_never_starts_is_said_once():
    found = apart("never starts")
    assert list(found) == [MAKING]
    assert "no torch here" in found[MAKING]["reason"]


def test_several_processes_share_the_cells(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    several = Section("environment", "what is here", 1.0, processes=3)
    names = [f"cell {index}" for index in range(7)]
    found = apart(*names, "is killed", setting=Setting("cuda"), section=several)
    assert set(found) == {*names, "is killed"}
    assert [name for name, one in found.items() if one["status"] == "failed"] == ["is killed"]


def test_no_time_is_no_crash():
    assert apart("first", seconds=0.0)[MAKING]["status"] == "not run"
    assert {one["reason"] for one in running.run_inline(SECTION, Setting("cpu", True), 0.0)} == {OUT_OF_TIME}


def test_the_worker_itself():
    """The real process of a section that needs torch alone."""
    (micro,) = (one for one in SECTIONS if one.name == "micro")
    outcomes = running.run_apart(micro, Setting("cpu", True), 120.0)
    assert {one["status"] for one in outcomes} == {"passed"}, outcomes
    assert {"copy", "bf16 GEMM", "swiglu in torch"} <= {one["cell"] for one in outcomes}


def test_a_device_that_is_not_there_fails_cell_by_cell():
    (micro,) = (one for one in SECTIONS if one.name == "micro")
    outcomes = running.run_inline(micro, Setting("xpu", True), 60.0)
    assert len(outcomes) > 5
    assert {one["status"] for one in outcomes} == {"failed"}
    assert all("Traceback" in one["traceback"] for one in outcomes)


def test_cells_that_cannot_be_made_are_one_outcome(monkeypatch):
    monkeypatch.setitem(sys.modules, "tools.gpu.sections.contract", None)
    (contract,) = (one for one in SECTIONS if one.name == "contract")
    (found,) = running.run_inline(contract, Setting("cpu", True), 60.0)
    assert (found["cell"], found["status"]) == (MAKING, "failed")
    assert "ModuleNotFoundError" in found["reason"]


def test_what_a_cell_can_say():
    def ask(error):
        def raising():
            raise error

        return outcome_of(Cell("one", raising))

    assert outcome_of(Cell("one", lambda: {"us": 2.0})) | {"seconds": 0} == {
        "cell": "one", "status": "passed", "figures": {"us": 2.0}, "seconds": 0,
    }  # fmt: skip
    assert ask(NotRun("no Triton"))["reason"] == "no Triton"
    assert ask(NotRun("no Triton"))["status"] == "not run"
    wrong = ask(Wrong("off by one\nand more", {"error": 1.0}))
    assert (wrong["status"], wrong["reason"], wrong["figures"]) == ("failed", "off by one", {"error": 1.0})
    failed = ask(KeyError("x"))
    assert (failed["status"], failed["reason"]) == ("failed", "KeyError: 'x'")
    assert "in raising" in failed["traceback"]
    json.dumps(failed)


def test_what_a_process_sees():
    found = surroundings({"PYTHONPATH": "/mine", "HOME": "/root"})
    assert found["PYTHONPATH"].split(":") == [str(ROOT), str(ROOT / "kernels"), "/mine"]
    assert (found["HOME"], found["HF_HUB_OFFLINE"]) == ("/root", "1")
