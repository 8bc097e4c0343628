"""A float32 matrix as a sum of bfloat16 matrices, on the CPU: values, any numbers, and torch's machinery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bf16_pieces_cases import CASES, OP, Case, complaint
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import compiled_with_names, launches
from torch._subclasses.fake_tensor import FakeTensorMode

from patchkit_kernels.ops import bf16_pieces as module
from patchkit_kernels.ops.bf16_pieces import LAYOUTS, Layout, bf16_pieces


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_cases_on_the_reference(case: Case) -> None:
    assert complaint(case, lambda arguments: OP(*arguments)) is None


FINITE = st.floats(width=32, min_value=2.0**-110, max_value=float(torch.finfo(torch.bfloat16).max))


@settings(max_examples=300, deadline=None)
@given(value=FINITE, negative=st.booleans())
def test_three_pieces_are_all_of_a_number_and_two_are_17_bits(value: float, negative: bool) -> None:
    x = torch.tensor([[-value if negative else value]], dtype=torch.float32)
    pieces = bf16_pieces(x, (0, 1, 2), "above").double()
    assert pieces.sum() == x.double()
    assert (pieces[:2].sum() - x.double()).abs() <= 2.0**-17 * x.abs()


def test_what_is_not_finite_has_one_piece() -> None:
    x = torch.tensor([[float("inf"), -float("inf"), float("nan"), 0.0, 3.4e38]])
    first, second, third = bf16_pieces(x, (0, 1, 2), "above")
    assert torch.equal(first.float(), x.bfloat16().float()) or first.isnan()[0, 2]
    assert first.isinf().tolist() == [[True, True, False, False, True]]
    assert not third.isnan()[0, :4].any()
    assert not second[0, :4].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: Layout) -> None:
    torch.library.opcheck(OP, (torch.randn(4, 3), 0.7, (0, 1, 0), layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_tensors(layout: Layout) -> None:
    with FakeTensorMode():
        pieces = bf16_pieces(torch.empty(4, 3, device="cuda"), (0, 1), layout)
    expected = {"above": (2, 4, 3), "beside": (4, 2, 3), "interleaved": (4, 3, 2)}[layout]
    assert (pieces.shape, pieces.dtype, pieces.device.type) == (expected, torch.bfloat16, "cuda")
    assert pieces.is_contiguous()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_graph_break(dynamic: bool) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return bf16_pieces(x * 2, (0, 1, 2), "beside", 0.5).float().sum(1)

    compiled, names = compiled_with_names(function, dynamic)
    for rows in (3, 4):
        x = torch.randn(rows, 5)
        assert torch.equal(compiled(x), x)
    assert "patchkit.bf16_pieces.default" in names


@pytest.mark.parametrize(("rows", "columns", "grid"), [(0, 3, None), (3, 0, None), (2, 256, (1,)), (3, 171, (2,))])
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    rows: int, columns: int, grid: tuple[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: on the device of the tensor, whichever is current."""

    def launch() -> None:
        x = torch.empty(rows, columns, device="cuda:1")
        assert module.launch(x, 1.0, (0, 1, 2), "above").device == x.device

    events = launches(module, "bf16_pieces_kernel", launch, monkeypatch)
    assert events == ([("guard", 1), ("launch", grid), ("end of guard", 1)] if grid else [])


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.float64, (2, 3), (0,), "above"), "a float32 matrix, but got torch.float64"),
        ((torch.float32, (2, 3, 1), (0,), "above"), r"a float32 matrix, but got .* of \[2, 3, 1\]"),
        ((torch.float32, (2, 3), (), "above"), r"but got \[\], above"),
        ((torch.float32, (2, 3), (0, 3), "beside"), r"but got \[0, 3\], beside"),
        ((torch.float32, (2, 3), (-1,), "beside"), r"but got \[-1\], beside"),
        ((torch.float32, (2, 3), (0,), "below"), r"pieces 0, 1 and 2 laid above, beside, interleaved, but got \[0\], below"),
    ],
)  # fmt: skip
def test_wrong_input(arguments: tuple[Any, ...], words: str, fake: bool) -> None:
    dtype, shape, order, layout = arguments
    with FakeTensorMode() if fake else torch.no_grad(), pytest.raises(ValueError, match=words):
        bf16_pieces(torch.ones(shape, dtype=dtype), order, layout)
