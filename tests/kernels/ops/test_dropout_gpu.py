"""Packed dropout masks on a real device: the draws of torch, the cases of the interpreter, what only a device shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICE, MODULE, needs_device, without_waiting
from dropout_cases import CASES, Case, complaint
from strided_tensors import ALL_DTYPES, as_dtype, uniform
from test_dropout_draws import LAYOUTS, PROBABILITIES, kept
from torch import Tensor

from patchkit_kernels.ops import dropout_once
from patchkit_kernels.ops.dropout import draw_mask, masked, masked_, pack_mask, unpack_mask
from patchkit_kernels.ops.dropout_once import add_dropped_again_, drop_again, drop_each

pytestmark = needs_device
pytest.importorskip("triton", reason="the kernels are Triton's")


def seeded(function: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The result after a fixed seed, and the device's random numbers that come next."""
    torch.manual_seed(0)
    return function(*arguments), torch.rand(3, device=DEVICE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel(case: Case) -> None:
    assert complaint(case, lambda op, arguments: op(*arguments), DEVICE) is None


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_the_mask_of_torch(layout: str, dtype: torch.dtype, p: float) -> None:
    x = as_dtype(LAYOUTS[layout](), dtype, DEVICE)
    (mask, after), (expected, expected_after) = seeded(draw_mask, x, p), seeded(kept, x, p)
    assert torch.equal(mask, expected)
    assert torch.equal(after, expected_after)


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_same_bits_as_dropout(dtype: torch.dtype) -> None:
    x = uniform(40, 33, seed=0).to(DEVICE, dtype)
    torch.manual_seed(0)
    expected = F.dropout(x, 0.1)
    torch.manual_seed(0)
    bits = pack_mask(draw_mask(x, 0.1))
    assert torch.equal(unpack_mask(bits, x.shape), expected != 0)
    assert torch.equal(masked(x, bits, 1 / 0.9), expected)
    assert torch.equal(masked_(x, bits, 1 / 0.9), expected)


@pytest.mark.parametrize("most", [0, 2**16], ids=["bits", "bytes"])
@pytest.mark.parametrize("read", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_drawn_once_and_applied_again(
    dtype: torch.dtype, read: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, though x may be in bfloat16 and be read in it."""
    monkeypatch.setattr(dropout_once, "UNPACKED_ON_GPU", most)
    x = uniform(2, 40, 33, seed=0).to(DEVICE, dtype)
    rows = x.view(-1, 33)
    expected, after = seeded(lambda: F.dropout(x.float(), 0.1).view(-1, 33))
    (dropped, mask), found_after = seeded(lambda: next(drop_each(x, rows, [0.1], read, torch.float32)))
    assert mask.dtype is (torch.bool if most else torch.uint8)
    assert torch.equal(after, found_after)
    assert dropped.dtype is read
    for one in (dropped, drop_again(rows, mask, 0.1, read)):
        torch.testing.assert_close(one.float(), expected, rtol=1e-2 if read is torch.bfloat16 else 1e-6, atol=0.0)
    total = torch.ones_like(rows)
    add_dropped_again_(total, rows, mask, 0.1)
    rtol = 1e-2 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(total.float(), 1 + expected, rtol=rtol, atol=rtol)


def test_does_not_wait_for_the_device() -> None:
    x = uniform(40, 33, seed=0).to(DEVICE, torch.bfloat16)

    def all_of_it() -> None:
        bits = pack_mask(draw_mask(x, 0.1))
        masked_(masked(x, bits, 1 / 0.9), bits, 1 / 0.9)

    all_of_it()  # the first call compiles
    with without_waiting():
        all_of_it()


def test_device_that_is_not_current() -> None:
    if MODULE.device_count() < 2:
        pytest.skip("needs two devices")
    x = uniform(40, 33, seed=0).to(f"{DEVICE}:1", torch.float32)
    assert MODULE.current_device() == 0
    mask = draw_mask(x, 0.3)
    result = masked(x, pack_mask(mask), 2.0)
    assert torch.equal(result, x * mask * 2)


def test_more_than_2_to_the_31_elements() -> None:
    if MODULE.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free device memory")
    rows, columns = 2**18 + 1, 2**13
    mask = torch.zeros(rows, columns, dtype=torch.bool, device=DEVICE)
    for row, column in ((-1, -1), (-1, 0), (rows // 2, 77)):
        mask[row, column] = True
    bits = pack_mask(mask)
    assert bits.count_nonzero() == 3
    x = torch.ones(rows, columns, dtype=torch.bfloat16, device=DEVICE)
    assert torch.equal(masked_(x, bits, 2.0) != 0, mask)
    del x
    strided = torch.ones(columns, rows, dtype=torch.bfloat16, device=DEVICE).mT
    assert torch.equal(masked(strided, bits, 2.0) != 0, mask)
