"""A gated MLP without lists: the bits that lists give, and what it leaves to them."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make
from straight_ways import in_lists
from structures import BIASED, DROPPED, LORA
from without_lists import (
    BF16,
    FP32,
    PRECISIONS,
    SHAPES,
    WAYS_OF_LISTS,
    Case,
    checkpointed_in_a_mode,
    compared_with_lists,
    kept_by,
    taken_over_by_lists,
)

from patchkit_kernels.lora import straight, straight_gated, straight_one, straight_saving
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.memory import Memory
from patchkit_kernels.lora.mlp_function import apply_lora_mlp
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.straight_gated import trained_gated
from patchkit_kernels.ops import dropout_once


@pytest.fixture
def applied(monkeypatch):
    """How often an MLP was computed without lists, with a graph."""
    calls, function = [], straight_gated._apply
    monkeypatch.setattr(straight_gated, "_apply", lambda *args: calls.append(1) or function(*args))
    return calls


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_that_lists_give(shape, precision, dropout, x_grad, gate_first, applied, monkeypatch):
    case = Case("gated", precision, dropout, bias=gate_first, shape=SHAPES[shape], gate_first=gate_first)
    case.x.requires_grad_(x_grad)
    compared_with_lists(case, monkeypatch)
    assert len(applied) == 1


@pytest.mark.parametrize("dropped", [(0, 1), (2,)], ids=["gate and up", "down"])
@pytest.mark.parametrize("unpacked", [0, 2**13])
def test_the_bits_of_every_kind_of_mask(unpacked, dropped, applied, monkeypatch):
    """In bits and as factors, one after the other in one tensor and apart, of down alone and of the others alone."""
    monkeypatch.setattr(dropout_once, "UNPACKED", unpacked)
    for probability in (0.4, 0.3):  # the second of gate and up
        case = Case("gated")
        for i in dropped:
            own = case.projections[i]
            p = probability if i == 1 else 0.4
            case.projections[i] = own._replace(adapters=(own.adapters[0]._replace(dropout=p),))
        compared_with_lists(case, monkeypatch)
    assert len(applied) == 2


def test_the_low_rank_product_may_come_first(monkeypatch):
    for module in (straight, straight_one):
        monkeypatch.setattr(module, "reads_in_epilogue", lambda x: True)
    compared_with_lists(Case("gated", bias=True), monkeypatch)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("rows", [0, 1024])
def test_the_same_is_kept(rows, x_grad, precision, monkeypatch):
    """Copies of W for few rows included."""
    monkeypatch.setattr(straight_saving, "FEW_ROWS", rows)
    case = Case("gated", precision, 0.4)
    case.x.requires_grad_(x_grad)
    found = kept_by(case.output())
    in_lists(monkeypatch)
    assert found == kept_by(case.output())
    copies = [entry for entry in found if entry == str(((16, 8), BF16))]
    narrow = PRECISIONS[precision][0] is BF16 or ("float32 under" in precision and rows)
    assert len(copies) == (2 if narrow and x_grad else 0)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("way", WAYS_OF_LISTS)
def test_lists_take_over_in_backward(way, dropout, monkeypatch):
    taken_over_by_lists(Case("gated", dropout=dropout), way, monkeypatch)


@pytest.mark.parametrize("changed", ["x", "gate A", "up B", "down A", "down W", "gate W"])
def test_what_changes_in_place_before_backward_is_an_error(changed):
    case = Case("gated")
    y = case.output()
    gate, up, down = case.projections
    tensors = {
        "x": case.x,
        "gate A": gate.adapters[0].lora_a,
        "up B": up.adapters[0].lora_b,
        "down A": down.adapters[0].lora_a,
        "down W": down.weight,
        "gate W": gate.weight,
    }
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_checkpoint_may_be_made_again_in_lists():
    checkpointed_in_a_mode(Case("gated"))


def test_without_gradients_nothing_is_applied(applied):
    case = Case("gated", dropout=0.4)
    expected = case.output()
    with torch.no_grad():
        found = case.output()
    assert len(applied) == 1
    assert torch.equal(found, expected)
    assert found.grad_fn is None


def mlp(*extras, **options):
    sizes = [(8, 16, 2), (8, 16, 3), (16, 8, 2)]
    return [
        make(*size, seed=i, extras=extra, **options) for i, (size, extra) in enumerate(zip(sizes, extras, strict=True))
    ]


PLAIN = Precision(*[torch.float64] * 4)
NOT_OF_THE_STRUCTURE = {
    "dropout of gate alone": mlp((DROPPED,), (LORA,), (LORA,)),
    "a bias of B of up": mlp((LORA,), (BIASED,), (LORA,)),
    "down without adapter": mlp((LORA,), (LORA,), ()),
    "A of two dtypes": [make(8, 16, 2, lora_dtype=FP32), *mlp((LORA,), (LORA,), (LORA,))[1:]],
}


@pytest.mark.parametrize("name", NOT_OF_THE_STRUCTURE)
def test_other_structures_are_left(name):
    x, (*inputs, down) = torch.randn(3, 8, dtype=torch.float64), mlp((LORA,), (LORA,), (LORA,))
    assert trained_gated(x, inputs, down, "silu", PLAIN, True) is not None
    assert trained_gated(x, inputs, down, "silu", PLAIN, None) is None
    assert trained_gated(x, inputs[:1], down, "silu", PLAIN, True) is None
    with choosing(one_pass_rank=16):
        assert trained_gated(x, inputs, down, "silu", PLAIN, True) is None
    *inputs, down = NOT_OF_THE_STRUCTURE[name]
    assert trained_gated(x, inputs, down, "silu", PLAIN, True) is None


@pytest.mark.parametrize("option", ["dropout", "limit", "memory", "all of it"])
def test_what_stands_between_and_what_is_made_again_is_left(option, applied):
    *inputs, down = mlp((LORA,), (LORA,), (LORA,))
    given = {"dropout": 0.0, "limit": None, "memory": None}
    given |= {"dropout": 0.3} if option == "dropout" else {"limit": 1.0} if option == "limit" else {}
    given |= {"memory": Memory(2)} if option == "memory" else {"memory": Memory(64)} if option == "all of it" else {}
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    apply_lora_mlp(x, inputs, down, "silu", PLAIN, True, **given)
    assert not applied
