"""A gated MLP's rank-r products on a real device: the cases of the interpreter, and what only a device can show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import DEVICE, needs_device, without_waiting
from gated_low_rank_cases import BACKWARD, CASES, FORWARD, Case, complaint

pytestmark = needs_device
pytest.importorskip("triton", reason="the kernels are Triton's")

LARGE = Case(3000, 5000, (16, 16, 16), "bf16", "fp32")


def run(op: Any, arguments: list[Any]) -> Any:
    return op(*arguments)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernels(case: Case) -> None:
    assert complaint(case, run, DEVICE) is None


@pytest.mark.parametrize("rank", [16, 32])
@pytest.mark.parametrize("dtypes", [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")], ids=str)
def test_usual_sizes_fit_the_device(rank: int, dtypes: tuple[str, str]) -> None:
    """Of shared memory a block has less on some devices."""
    assert complaint(Case(2048, 2560, (rank,) * 3, *dtypes), run, DEVICE) is None


@pytest.mark.parametrize(("op", "direction"), [(FORWARD, "forward"), (BACKWARD, "backward")])
def test_same_bits_every_time(op: Any, direction: str) -> None:
    once, again = (getattr(LARGE, direction)(DEVICE) for _ in range(2))
    assert all(map(torch.equal, (*op(*once), *once[:2]), (*op(*again), *again[:2])))


@pytest.mark.parametrize(("op", "direction"), [(FORWARD, "forward"), (BACKWARD, "backward")])
def test_does_not_wait_for_the_device(op: Any, direction: str) -> None:
    arguments = getattr(LARGE, direction)(DEVICE)
    op(*arguments)  # the first call compiles
    with without_waiting():
        op(*arguments)
