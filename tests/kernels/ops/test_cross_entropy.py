"""The cross-entropy of rows: its reference, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_cases import CASES, OP, Case, complaint

from patchkit_kernels.ops.cross_entropy import cross_entropy_


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
