"""A process that is run to its end, and what it started."""

from __future__ import annotations

import os
import sys
import time

import pytest

from patchkit.processes.children import ChildError, run_child


@pytest.mark.skipif(os.name == "nt", reason="there are no process groups there")
def test_a_command_is_stopped_with_all_that_it_started(tmp_path):
    """Such as a build: pip is killed, and what it started must not go on, nor be waited for."""
    mark = tmp_path / "mark"
    inner = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    start = time.monotonic()
    with pytest.raises(ChildError, match="was not done after 1 s"):
        run_child([sys.executable, "-c", outer], seconds=1.0, environment=os.environ)
    assert time.monotonic() - start < 3
    time.sleep(3)
    assert not mark.exists()


def test_what_a_command_says_and_how_it_ends():
    command = [sys.executable, "-c", "import sys; print('out'); sys.exit('no')"]
    done = run_child(command, seconds=60.0, environment=os.environ)
    assert (done.code, done.output.strip(), done.said.strip()) == (1, "out", "no")


@pytest.mark.skipif(os.name == "nt", reason="there are no process groups there")
def test_what_a_command_leaves_behind_ends_with_it(tmp_path):
    mark = tmp_path / "mark"
    inner = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}])"
    assert run_child([sys.executable, "-c", code], seconds=60.0, environment=os.environ).code == 0
    time.sleep(2.5)
    assert not mark.exists()
