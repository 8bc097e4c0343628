"""Dropout's backward into a sum: the reference, its chunks, the ways it is run, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dropout_cases import ADD_MASKED_, CASES, Case, complaint
from recording import launches
from strided_tensors import uniform
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from patchkit_kernels.ops import add_masked
from patchkit_kernels.ops.add_masked import add_masked_
from patchkit_kernels.ops.dropout import masked, pack_mask

OWN = [case for case in CASES if case.op == "add_masked_"]


def bits(*shape: int) -> Tensor:
    return pack_mask(torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6)


@pytest.mark.parametrize("case", OWN, ids=lambda case: case.id)
def test_reference(case: Case) -> None:
    assert complaint(case, lambda op, arguments: op(*arguments)) is None


def test_bits_are_those_of_a_product_that_is_added_next() -> None:
    x, packed = uniform(5, 21, seed=0).float(), bits(5, 21)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        total = uniform(5, 21, seed=1).to(dtype)
        expected = total.clone().add_(masked(x, packed, 1 / 0.9))
        assert add_masked_(total, x, packed, 1 / 0.9) is total
        assert torch.equal(total, expected)


def test_chunk_after_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    x, packed = uniform(5, 21, seed=0), bits(5, 21)
    expected = add_masked_(torch.ones_like(x), x, packed, 2.0)
    monkeypatch.setattr(add_masked, "CHUNK", 16)
    assert torch.equal(add_masked_(torch.ones_like(x), x, packed, 2.0), expected)


def test_op() -> None:
    x, packed = uniform(5, 21, seed=0).float(), bits(5, 21)
    torch.library.opcheck(ADD_MASKED_, (x.clone(), x, packed, 2.0), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    x, packed = uniform(5, 21, seed=0).float(), bits(5, 21)

    def added(x: Tensor) -> Tensor:
        return add_masked_(x * 2, x, packed, 2.0) + 1

    assert torch.equal(torch.compile(added, fullgraph=True)(x), added(x))


@pytest.mark.parametrize(("way", "runs"), [(None, "_op"), (True, "_kernel"), (False, "_reference")])
def test_which_way(way: bool | None, runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_masked, "runs_kernel", lambda tensor: way)
    seen: list[Any] = []
    for name in ("_op", "_kernel", "_reference"):
        monkeypatch.setattr(add_masked, name, lambda *arguments, name=name: seen.append(name))
    x = uniform(3, 5, seed=0)
    assert add_masked_(x, x, bits(3, 5), 2.0) is x
    assert seen == [runs]


@pytest.mark.parametrize(("size", "grid"), [(0, None), (1, (1,)), (1024, (1,)), (1025, (2,))])
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    size: int, grid: tuple[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch() -> None:
        x, packed = torch.empty(size, device="cuda:1"), torch.empty(-(-size // 8), dtype=torch.uint8, device="cuda:1")
        add_masked.launch(x, x, packed, 2.0)

    events = launches(add_masked, "add_masked_kernel", launch, monkeypatch)
    assert events == ([("guard", 1), ("launch", grid), ("end of guard", 1)] if grid else [])


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_wrong_tensors(fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        x, packed = torch.ones(3, 5), torch.ones(2, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"add_masked_ takes a uint8 mask of \[2\] for elements of \[3, 5\]"):
            add_masked_(x.clone(), x, packed[:-1], 2.0)
        with pytest.raises(ValueError, match=r"one shape and device, but got \[5, 3\] on cpu, \[3, 5\] on cpu"):
            add_masked_(torch.ones(5, 3), x, packed, 2.0)
        for total, other in ((torch.ones(5, 3).mT, x), (x, torch.ones(5, 3).mT)):
            with pytest.raises(ValueError, match="takes contiguous tensors, but got strides"):
                add_masked_(total, other, packed, 2.0)
