"""An MLP of two projections without lists: masks of every kind, and what is left to lists."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make
from structures import BIASED, LORA
from without_lists import Case, compared_with_lists

from patchkit_kernels.lora import straight_two
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.memory import Memory
from patchkit_kernels.lora.mlp_function import apply_lora_mlp
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.straight_two import trained_two
from patchkit_kernels.ops import dropout_once

USUAL = Precision(*[torch.float64] * 4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gate_may_come_second(dropout, monkeypatch):
    compared_with_lists(Case("joint", dropout=dropout, gate_first=False), monkeypatch)


@pytest.mark.parametrize("dropped", [(0,), (1,), (0, 1)], ids=["up", "down", "both"])
@pytest.mark.parametrize("unpacked", [0, 2**13])
@pytest.mark.parametrize("part", ["ungated", "joint"])
def test_the_bits_of_every_kind_of_mask(part, unpacked, dropped, monkeypatch):
    monkeypatch.setattr(dropout_once, "UNPACKED", unpacked)
    case = Case(part)
    for i in dropped:
        own = case.projections[i]
        case.projections[i] = own._replace(adapters=(own.adapters[0]._replace(dropout=0.4 - 0.1 * i),))
    compared_with_lists(case, monkeypatch)


def two(up=(LORA,), down=(LORA,)):
    return [make(8, 16, 2, extras=up)], make(16, 8, 2, extras=down)


def test_other_structures_are_left():
    x, (inputs, down) = torch.randn(3, 8, dtype=torch.float64), two()
    assert trained_two(x, inputs, down, "silu", USUAL, None) is not None
    assert trained_two(x, inputs * 2, down, "silu", USUAL, True) is None
    with choosing(one_pass_rank=16, emulated=True):
        assert trained_two(x, inputs, down, "silu", USUAL, None) is None
    for inputs, down in (two(up=(BIASED,)), two(down=(BIASED,)), two(up=()), two(down=())):
        assert trained_two(x, inputs, down, "silu", USUAL, None) is None


@pytest.mark.parametrize("option", [{"dropout": 0.3}, {"memory": Memory(2)}, {"memory": Memory(64)}], ids=str)
def test_what_stands_between_and_what_is_made_again_is_left(option, monkeypatch):
    calls, function = [], straight_two._apply
    monkeypatch.setattr(straight_two, "_apply", lambda *args: calls.append(1) or function(*args))
    (inputs, down), x = two(), torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    apply_lora_mlp(x, inputs, down, "silu", USUAL, None, **{"dropout": 0.0} | option)
    assert not calls
    apply_lora_mlp(x, inputs, down, "silu", USUAL, None, 0.0)
    assert calls
