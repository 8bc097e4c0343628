"""A gated MLP without lists: the bits that lists give, and what it leaves to them."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make
from structures import BIASED, DROPPED, LORA
from without_lists import (
    FP32,
    PRECISIONS,
    Case,
    compared_with_lists,
)

from patchkit_kernels.lora import straight_gated
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


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gate_may_come_second(precision, dropout, applied, monkeypatch):
    compared_with_lists(Case("gated", precision, dropout, gate_first=False), monkeypatch)
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
    with choosing(one_pass_rank=16, emulated=True):
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
