"""The pieces of a float32 matrix on a real device: the cases of the interpreter."""

from __future__ import annotations

import pytest
from bf16_pieces_cases import CASES, OP, Case, complaint
from devices import DEVICE, needs_device

pytestmark = needs_device
pytest.importorskip("triton", reason="the kernel is Triton's")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel(case: Case) -> None:
    assert complaint(case, lambda arguments: OP(*arguments), DEVICE) is None
