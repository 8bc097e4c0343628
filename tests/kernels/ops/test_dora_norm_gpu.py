"""DoRA's weight norm on a real device: the cases of the interpreter, and what only a device can show."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICE, MODULE, needs_device, without_waiting
from dora_norm_cases import CASES, Case, complaint, truth

from patchkit_kernels.ops.dora_norm import dora_weight_norm

pytestmark = needs_device
pytest.importorskip("triton", reason="the kernel is Triton's")

CASE = Case(70, 1100, 33, dtypes=("bf16", "fp32", "fp32"), bias="fp32")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel(case: Case) -> None:
    assert complaint(case, lambda arguments: dora_weight_norm(*arguments), DEVICE) is None


def test_fp64_runs_the_reference() -> None:
    weight, *rest = CASE.arguments(DEVICE)
    norm = dora_weight_norm(weight.double(), *rest)
    torch.testing.assert_close(norm.cpu(), truth(weight, *rest)[0], rtol=1e-14, atol=1e-14)


def test_same_bits_every_time() -> None:
    arguments = CASE.arguments(DEVICE)
    assert torch.equal(dora_weight_norm(*arguments), dora_weight_norm(*arguments))


def test_does_not_wait_for_the_device() -> None:
    arguments = CASE.arguments(DEVICE)
    dora_weight_norm(*arguments)  # the first call compiles
    with without_waiting():
        dora_weight_norm(*arguments)


def test_tf32_and_autocast_change_nothing() -> None:
    arguments = CASE.arguments(DEVICE)
    expected = dora_weight_norm(*arguments)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            assert torch.equal(dora_weight_norm(*arguments), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_device_that_is_not_current() -> None:
    if MODULE.device_count() < 2:
        pytest.skip("needs two devices")
    arguments = CASE.arguments(f"{DEVICE}:1")
    assert MODULE.current_device() == 0
    norm = dora_weight_norm(*arguments)
    assert norm.device == arguments[0].device
    torch.testing.assert_close(norm.cpu(), truth(*arguments)[0].float())


def test_needs_no_memory_of_the_weights_size() -> None:
    weight = torch.ones(8192, 4096, dtype=torch.bfloat16, device=DEVICE)
    lora_a, lora_b = torch.ones(16, 4096, device=DEVICE), torch.ones(8192, 16, device=DEVICE)
    dora_weight_norm(weight, lora_a, lora_b, 0.5)
    MODULE.reset_peak_memory_stats()
    before = MODULE.memory_allocated()
    dora_weight_norm(weight, lora_a, lora_b, 0.5)
    assert MODULE.max_memory_allocated() - before < weight.nbytes / 50


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_more_than_2_to_the_31_elements(transposed: bool) -> None:
    if MODULE.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GiB of free device memory")
    rows, columns = 2**17 + 1, 2**14
    weight = torch.zeros((columns, rows) if transposed else (rows, columns), dtype=torch.bfloat16, device=DEVICE)
    weight = weight.mT if transposed else weight
    weight[-1, -1], weight[-1, 0], weight[rows // 2, 77] = 3, 4, 2
    lora_a, lora_b = torch.zeros(2, columns, device=DEVICE), torch.zeros(rows, 2, device=DEVICE)
    norm = dora_weight_norm(weight, lora_a, lora_b, 1.0)
    assert (norm[-1].item(), norm[rows // 2].item(), norm.sum().item()) == (5, 2, 7)
