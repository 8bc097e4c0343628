"""dt and dB in one pass over dy, on the CPU: values, torch's machinery, launching, and wrong input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from low_rank_backward_cases import CASES, OP, Case, complaint
from recording import compiled_with_names, launches
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import run_device_kernel

from patchkit_kernels.ops import low_rank_backward as module
from patchkit_kernels.ops.low_rank_backward import MAX_RANK, low_rank_backward
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

CASE = Case(5, 7, 3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_cases_on_the_reference(case: Case) -> None:
    assert complaint(case, lambda arguments: low_rank_backward(*arguments)) is None


def test_float64_is_computed_in_float64() -> None:
    grad, factor, reduced, scale = CASE.arguments()
    wide = [tensor.double() for tensor in (grad, factor, reduced)]
    for found, expected in zip(
        low_rank_backward(*wide, scale), (scale * wide[0] @ wide[1], scale * wide[0].t() @ wide[2]), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_autocast_changes_nothing() -> None:
    expected = low_rank_backward(*CASE.arguments())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, low_rank_backward(*CASE.arguments()), expected))


@pytest.mark.parametrize("dtypes", [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")], ids=str)
def test_opcheck(dtypes: tuple[str, str]) -> None:
    torch.library.opcheck(OP, tuple(Case(5, 7, 3, *dtypes).arguments()))


def test_compiles_without_graph_break() -> None:
    def function(grad: torch.Tensor, *rest: Any) -> torch.Tensor:
        d_reduced, d_factor = low_rank_backward(grad * 2, *rest)
        return d_reduced.sum() + d_factor.sum()

    compiled, names = compiled_with_names(function)
    torch.testing.assert_close(compiled(*CASE.arguments()), function(*CASE.arguments()))
    assert "patchkit.low_rank_backward.default" in names


@pytest.mark.parametrize(
    ("sizes", "grid"),
    [
        ((0, 3, 2), None), ((3, 0, 2), None), ((3, 3, 0), None),
        ((1, 128, 2), (1, 1)), ((2048, 129, 2), (2, 1)), ((2049, 300, 2), (3, 2)),
    ],
)  # fmt: skip
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    sizes: tuple[int, int, int], grid: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: on the device of the tensors, whichever is current."""
    tokens, columns, rank = sizes

    def launch() -> None:
        grad, factor, reduced = (
            torch.empty(shape, device="cuda:1") for shape in ((tokens, columns), (columns, rank), (tokens, rank))
        )
        d_reduced, d_factor = module.launch(grad, factor, reduced, 0.5)
        assert (d_reduced.shape, d_factor.shape) == ((tokens, rank), (columns, rank))
        assert d_reduced.device == d_factor.device == grad.device

    events = launches(module, "low_rank_backward_kernel", launch, monkeypatch)
    assert events == ([("guard", 1), ("launch", grid), ("end of guard", 1)] if grid else [])


@pytest.mark.skipif(not TRITON_AVAILABLE, reason="no kernel to avoid")
@pytest.mark.parametrize("kind", ["fp64 grad", "fp64 factors", "rank"])
def test_what_the_kernel_does_not_take_runs_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "launch", None)
    arguments = Case(4, 5, MAX_RANK + 1 if kind == "rank" else 3).arguments()
    wide = {"fp64 grad": [0], "fp64 factors": [1, 2], "rank": []}[kind]
    arguments = [value.double() if index in wide else value for index, value in enumerate(arguments)]
    for found, expected in zip(run_device_kernel(OP, arguments), low_rank_backward(*arguments), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    "shapes",
    [((5, 7), (6, 2), (5, 2)), ((5, 7), (7, 2), (5, 3)), ((5, 7), (7, 2), (4, 2)), ((5, 7), (7, 2), (5, 2, 1))],
    ids=["columns", "rank", "rows", "dimensions"],
)
def test_tensors_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        tensors = [torch.ones(shape) for shape in shapes]
        with pytest.raises(ValueError, match=r"takes grad .* but got grad: torch.float32 \[5, 7\]"):
            low_rank_backward(*tensors, 0.5)


def test_factors_of_two_dtypes_or_devices() -> None:
    grad, factor, reduced, scale = CASE.arguments()
    with pytest.raises(ValueError, match=r"reduced: torch.float64 \[5, 3\]"):
        low_rank_backward(grad, factor, reduced.double(), scale)
    with pytest.raises(ValueError, match=r"reduced: torch.float32 \[5, 3\] on meta"):
        low_rank_backward(grad, factor, reduced.to("meta"), scale)
