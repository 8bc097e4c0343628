"""The two products that read dy on a real device: the cases of the interpreter, and what only a device can show."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, needs_device, without_waiting
from low_rank_backward_cases import CASES, Case, complaint

from patchkit_kernels.ops.low_rank_backward import low_rank_backward

pytestmark = needs_device
pytest.importorskip("triton", reason="the kernel is Triton's")

LARGE = Case(5000, 1000, 16, "bf16", "fp32")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel(case: Case) -> None:
    assert complaint(case, lambda arguments: low_rank_backward(*arguments), DEVICE) is None


@pytest.mark.parametrize("rank", [16, 32, 64])
@pytest.mark.parametrize("factors", ["bf16", "fp32"])
def test_usual_sizes_fit_the_device(rank: int, factors: str) -> None:
    """Of shared memory a block has less on some devices."""
    case = Case(4096, 1024, rank, "bf16", factors)
    assert complaint(case, lambda arguments: low_rank_backward(*arguments), DEVICE) is None


def test_same_bits_every_time() -> None:
    arguments = LARGE.arguments(DEVICE)
    assert all(map(torch.equal, low_rank_backward(*arguments), low_rank_backward(*arguments)))


def test_does_not_wait_for_the_device() -> None:
    arguments = LARGE.arguments(DEVICE)
    low_rank_backward(*arguments)  # the first call compiles
    with without_waiting():
        low_rank_backward(*arguments)
