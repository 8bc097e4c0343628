"""One projection without lists: masks of every kind, and what is left to lists."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make
from structures import BIASED, DORA, LORA
from without_lists import BF16, FP32, FP64, Case, NoGradient, Seen, compared_with_lists

from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.projection import Adapter, Precision, Projection
from patchkit_kernels.lora.straight_one import trained_one, unwatched
from patchkit_kernels.ops import dropout_once


@pytest.mark.parametrize("unpacked", [0, 2**13])
@pytest.mark.parametrize("size", [8, 7])
def test_the_bits_of_every_kind_of_mask(size, unpacked, monkeypatch):
    """In bits and as factors, of whole bytes and not."""
    monkeypatch.setattr(dropout_once, "UNPACKED", unpacked)
    case = Case("one", dropout=0.4, shape=(3, size))
    case.projections = [make(size, 6, 2, extras=(LORA._replace(dropout=0.4),))]
    compared_with_lists(case, monkeypatch)


def test_nothing_flows_where_nothing_is_given():
    case = Case("one")
    y = NoGradient.apply(case.outputs()[0])
    assert torch.autograd.grad(y.sum(), case.variables, allow_unused=True) == (None,) * 3


NOT_OF_THE_STRUCTURE = {
    "none": make(8, 6, 2, extras=()),
    "two adapters": make(8, 6, 2, extras=(LORA, LORA)),
    "a bias of B": make(8, 6, 2, extras=(BIASED,)),
    "DoRA": make(8, 6, 2, extras=(DORA,)),
    "all dropped": make(8, 6, 2, extras=(LORA._replace(dropout=1.0),)),
    "a trained base": make(8, 6, 2, base_grad=True),
    "a trained bias": Projection(torch.ones(6, 8), torch.ones(6, requires_grad=True), make(8, 6, 2).adapters),
    "factors of two dtypes": make(8, 6, 2)._replace(
        adapters=(Adapter(torch.ones(2, 8, requires_grad=True), torch.ones(6, 2, dtype=FP64, requires_grad=True)),)
    ),
    "a frozen A": make(8, 6, 2)._replace(adapters=(Adapter(torch.ones(2, 8), torch.ones(6, 2, requires_grad=True)),)),
    "a frozen B": make(8, 6, 2)._replace(adapters=(Adapter(torch.ones(2, 8, requires_grad=True), torch.ones(6, 2)),)),
    "a weight of another form": make(8, 6, 2)._replace(weight=object()),
}


@pytest.mark.parametrize("name", NOT_OF_THE_STRUCTURE)
def test_other_structures_are_left(name):
    assert trained_one(make(8, 6, 2)) is not None
    assert trained_one(NOT_OF_THE_STRUCTURE[name]) is None


def test_who_looks_at_operations_sees_those_of_lists():
    x, projection = torch.randn(3, 8, dtype=BF16), make(8, 6, 2, dtype=BF16, lora_dtype=FP32)
    wide, narrow = Precision(BF16, FP32, BF16, FP32), Precision(*[BF16] * 4)
    assert unwatched(x, wide, projection.weight)
    with Seen():
        assert not unwatched(x, narrow, projection.weight)
    for choice in ("one_pass_rank", "in_activation_rank"):
        with choosing(**{choice: 16}):
            assert unwatched(x, narrow, projection.weight)  # on a CPU these are not for it
        with choosing(**{choice: 16}, emulated=True):
            assert not unwatched(x, narrow, projection.weight)
    with choosing(emulated=True):
        assert not unwatched(x, wide, projection.weight)
        assert unwatched(x, narrow, projection.weight)
