"""One projection without lists: the bits that lists give, and what it leaves to them."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make
from straight_ways import in_lists
from structures import BIASED, DORA, LORA
from without_lists import (
    BF16,
    FP32,
    FP64,
    PRECISIONS,
    SHAPES,
    WAYS_OF_LISTS,
    Case,
    Seen,
    checkpointed_in_a_mode,
    compared_with_lists,
    kept_by,
    taken_over_by_lists,
)

from patchkit_kernels.lora import straight, straight_one, straight_saving
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.projection import Adapter, Precision, Projection
from patchkit_kernels.lora.straight_one import trained_one, unwatched
from patchkit_kernels.ops import dropout_once


@pytest.fixture
def applied(monkeypatch):
    """How often a projection was computed without lists, with a graph."""
    calls, function = [], straight_one._apply
    monkeypatch.setattr(straight_one, "_apply", lambda *args: calls.append(1) or function(*args))
    return calls


@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_that_lists_give(shape, precision, dropout, bias, x_grad, applied, monkeypatch):
    case = Case("one", precision, dropout, bias=bias, shape=SHAPES[shape])
    case.x.requires_grad_(x_grad)
    compared_with_lists(case, monkeypatch)
    assert len(applied) == 1


@pytest.mark.parametrize("unpacked", [0, 2**13])
@pytest.mark.parametrize("size", [8, 7])
def test_the_bits_of_every_kind_of_mask(size, unpacked, applied, monkeypatch):
    """In bits and as factors, of whole bytes and not."""
    monkeypatch.setattr(dropout_once, "UNPACKED", unpacked)
    case = Case("one", dropout=0.4, shape=(3, size))
    case.projections = [make(size, 6, 2, extras=(LORA._replace(dropout=0.4),))]
    compared_with_lists(case, monkeypatch)
    assert len(applied) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_the_low_rank_product_may_come_first(bias, monkeypatch):
    for module in (straight, straight_one):
        monkeypatch.setattr(module, "reads_in_epilogue", lambda x: True)
    compared_with_lists(Case("one", bias=bias), monkeypatch)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("rows", [0, 1024])
def test_the_same_is_kept(rows, x_grad, precision, monkeypatch):
    """Copies of W for few rows included."""
    monkeypatch.setattr(straight_saving, "FEW_ROWS", rows)
    case = Case("one", precision, 0.4)
    case.x.requires_grad_(x_grad)
    found = kept_by(case.output())
    in_lists(monkeypatch)
    assert found == kept_by(case.output())
    copied = "float32 under" in precision and rows and x_grad
    assert (str(((6, 8), BF16)) in found) == (x_grad and (PRECISIONS[precision][0] is BF16 or bool(copied)))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("way", WAYS_OF_LISTS)
def test_lists_take_over_in_backward(way, dropout, monkeypatch):
    taken_over_by_lists(Case("one", dropout=dropout), way, monkeypatch)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_nothing_flows_where_nothing_is_given():
    case = Case("one")
    y = NoGradient.apply(case.output())
    assert torch.autograd.grad(y.sum(), case.variables, allow_unused=True) == (None,) * 3


def test_a_checkpoint_may_be_made_again_in_lists():
    checkpointed_in_a_mode(Case("one"))


def test_without_gradients_nothing_is_applied(applied):
    case = Case("one", dropout=0.4)
    expected = case.output()
    with torch.no_grad():
        found = case.output()
    assert len(applied) == 1
    assert torch.equal(found, expected)
    assert found.grad_fn is None


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
    with choosing(one_pass_rank=16):
        assert not unwatched(x, narrow, projection.weight)
    with choosing(emulated=True):
        assert not unwatched(x, wide, projection.weight)
        assert unwatched(x, narrow, projection.weight)
