"""The Triton kernels of a gated MLP's rank-r products in Triton's interpreter; each case has its own test id."""

from __future__ import annotations

import pytest
from gated_low_rank_cases import CASES, Case
from triton_interpreter import complaints_of

pytest.importorskip("triton", reason="the interpreter is part of Triton")


@pytest.fixture(scope="module")
def complaints() -> dict[str, str | None]:
    return complaints_of("gated_low_rank_cases.py")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_interpreted_kernels(case: Case, complaints: dict[str, str | None]) -> None:
    assert complaints[case.id] is None
