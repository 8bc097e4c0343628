"""The Triton kernels of the gated activations in Triton's interpreter, against fp64.

``TRITON_INTERPRET`` is read when a kernel is defined, so one subprocess runs all cases; each has its own test id here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gated_activation_cases import CASES, Case

pytest.importorskip("triton", reason="the interpreter is part of Triton")


@pytest.fixture(scope="module")
def complaints() -> dict[str, str | None]:
    program = Path(__file__).with_name("gated_activation_cases.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    result: dict[str, str | None] = json.loads(run.stdout)
    return result


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_interpreted_kernel(case: Case, complaints: dict[str, str | None]) -> None:
    assert complaints[case.id] is None
