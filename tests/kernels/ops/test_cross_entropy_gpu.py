"""The cross-entropy of rows on a real device: the cases of the interpreter, and what only a device can show."""

from __future__ import annotations

import pytest
import torch
from cross_entropy_cases import CASES, OP, Case, complaint
from devices import DEVICE, needs_device, without_waiting

pytestmark = needs_device
pytest.importorskip("triton", reason="the kernel is Triton's")

WIDE = Case(3, 70_001, dtype="bf16", softcap=30.0)


@pytest.mark.parametrize("case", [*CASES, WIDE], ids=lambda case: case.id)
def test_kernel(case: Case) -> None:
    assert complaint(case, lambda arguments: OP(*arguments), DEVICE) is None


def test_same_bits_every_time() -> None:
    first, second = WIDE.arguments(DEVICE), WIDE.arguments(DEVICE)
    assert torch.equal(OP(*first), OP(*second))
    assert torch.equal(first[0], second[0])


def test_does_not_wait_for_the_device() -> None:
    OP(*WIDE.arguments(DEVICE))  # the first call compiles
    arguments = WIDE.arguments(DEVICE)
    with without_waiting():
        OP(*arguments)
