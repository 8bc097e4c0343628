"""The cross-entropy of rows: its reference, and what it refuses."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import CASES, OP, Case, complaint
from recording import launches
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import run_device_kernel

from patchkit_kernels.ops import cross_entropy as module
from patchkit_kernels.ops.cross_entropy import cross_entropy_
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_reference(case: Case) -> None:
    assert complaint(case, lambda arguments: OP(*arguments)) is None


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_exact_in_float64(softcap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    target = torch.tensor([1, -100, 8, 0])
    leaf = z.clone().requires_grad_()
    y = torch.tanh(leaf * 0.7 / softcap) * softcap if softcap else leaf * 0.7
    (expected,) = torch.autograd.grad(F.cross_entropy(y, target, reduction="sum"), leaf)
    one = torch.ones((), dtype=torch.float64)
    losses = cross_entropy_(z, target, one, scale=0.7, softcap=softcap, exact=True)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, F.cross_entropy(y, target, reduction="none").detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(z, expected, rtol=1e-13, atol=1e-14)


def test_the_bits_of_upstream_over_a_large_vocabulary() -> None:
    """A sum of 50,000 numbers in another order differs by more than the rest of a loss rounds."""
    generator = torch.Generator().manual_seed(0)
    z, target = torch.randn(7, 50_001, generator=generator), torch.arange(7)
    expected = F.cross_entropy(z, target, reduction="none")
    assert torch.equal(cross_entropy_(z, target, torch.ones(())), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_so_in_its_row(value: float) -> None:
    z = torch.zeros(3, 4)
    z[1, 2] = value
    losses = cross_entropy_(z, torch.tensor([0, 1, -100]), torch.ones(()))
    assert losses.isnan().tolist() == [False, True, False]
    assert z.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_does_not_count_has_no_gradient_whatever_is_in_it(value: float) -> None:
    z = torch.full((2, 4), value)
    losses = cross_entropy_(z, torch.tensor([-100, -100]), torch.tensor(torch.inf))
    assert losses.tolist() == [0.0, 0.0]
    assert not z.any()


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(3, 2).t(), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 0), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_refuses_what_does_not_fit(logits: torch.Tensor, target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="patchkit::cross_entropy_ takes logits"):
        cross_entropy_(logits, target, torch.ones(()))


def test_is_an_op_with_a_shape_of_its_own() -> None:
    arguments = Case(3, 5).arguments()
    torch.library.opcheck(OP, tuple(arguments), test_utils=("test_schema", "test_faketensor"))


DTYPES_OF_LOSSES = [
    (torch.float64, False, torch.float32),
    (torch.float64, True, torch.float64),
    (torch.float32, True, torch.float32),
    (torch.bfloat16, True, torch.float32),
    (torch.bfloat16, False, torch.float32),
]


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize(("dtype", "exact", "expected"), DTYPES_OF_LOSSES, ids=str)
def test_the_dtype_of_losses(dtype: torch.dtype, exact: bool, expected: torch.dtype, rows: int, fake: bool) -> None:
    with FakeTensorMode() if fake else nullcontext():
        target = torch.zeros(rows, dtype=torch.int64)
        losses = cross_entropy_(torch.ones(rows, 3, dtype=dtype), target, torch.ones(()), exact=exact)
    assert (losses.dtype, losses.shape) == (expected, (rows,))


def test_what_is_said_by_default() -> None:
    """A gradient, labels of -100 that do not count, no scale and no cap, and float32."""
    z, target = torch.tensor([[1.0, 3.0], [2.0, 0.0]], dtype=torch.float64), torch.tensor([0, -100])
    written, kept = z.clone(), z.clone()
    losses = cross_entropy_(written, target, torch.ones(()))
    assert torch.equal(losses, cross_entropy_(kept, target, torch.ones(()), gradient=False))
    assert torch.equal(kept, z)
    leaf = z.clone().requires_grad_()
    expected = F.cross_entropy(leaf, target, reduction="none")
    torch.testing.assert_close(losses, expected.detach().float())
    torch.testing.assert_close(written, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rows", [0, 5])
def test_launches_under_a_device_guard_and_only_if_there_is_work(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """F15: on the device of the tensors, whichever is current."""

    def launch() -> None:
        logits, factor = torch.empty(rows, 7, device="cuda:1"), torch.ones((), device="cuda:1")
        target = torch.empty(rows, dtype=torch.int64, device="cuda:1")
        losses = module.launch(logits, target, factor, -100, 1.0, 0.0, True)
        assert (losses.shape, losses.dtype, losses.device) == ((rows,), torch.float32, logits.device)

    events = launches(module, "cross_entropy_kernel", launch, monkeypatch)
    assert events == ([("guard", 1), ("launch", (rows,)), ("end of guard", 1)] if rows else [])


@pytest.mark.skipif(not TRITON_AVAILABLE, reason="no kernel to avoid")
@pytest.mark.parametrize("exact", [False, True])
def test_fp64_on_a_device_runs_the_reference(exact: bool) -> None:
    results = []
    for call in (lambda arguments: OP(*arguments), lambda arguments: run_device_kernel(OP, arguments)):
        logits = torch.linspace(-2.0, 2.0, 15, dtype=torch.float64).view(3, 5)
        losses = call((logits, torch.tensor([0, -100, 4]), torch.tensor(0.5), -100, 0.7, 1.5, True, exact))
        results.append((losses, logits))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
