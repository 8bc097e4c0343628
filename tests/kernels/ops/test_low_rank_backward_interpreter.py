"""The Triton kernel of the two products that read dy in Triton's interpreter; each case has its own test id."""

from __future__ import annotations

import pytest
from low_rank_backward_cases import CASES, Case
from triton_interpreter import complaints_of

pytest.importorskip("triton", reason="the interpreter is part of Triton")


@pytest.fixture(scope="module")
def complaints() -> dict[str, str | None]:
    return complaints_of("low_rank_backward_cases.py")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_interpreted_kernel(case: Case, complaints: dict[str, str | None]) -> None:
    assert complaints[case.id] is None
