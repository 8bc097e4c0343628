"""Three projections without lists: masks of every kind, and what is left to lists."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make
from structures import BIASED, DROPPED, LORA
from without_lists import BF16, FP32, Case, NoGradient, assert_same_bits, compared_with_lists, cotangents_of, in_lists

from patchkit_kernels.lora import straight_one
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.straight_three import trained_three
from patchkit_kernels.ops import dropout_once


@pytest.mark.parametrize("last", [0.4, 0.3])
@pytest.mark.parametrize("unpacked", [0, 2**13])
def test_the_bits_of_every_kind_of_mask(unpacked, last, monkeypatch):
    """In bits and as factors, one after the other in one tensor and apart."""
    monkeypatch.setattr(dropout_once, "UNPACKED", unpacked)
    case = Case("three", dropout=0.4)
    own = case.projections[2]
    case.projections[2] = own._replace(adapters=(own.adapters[0]._replace(dropout=last),))
    compared_with_lists(case, monkeypatch)


@pytest.mark.parametrize("unused", [0, 1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_an_output_without_a_gradient(dropout, unused, monkeypatch):
    """Nothing flows back from it: its adapter has no gradient."""
    case, found = Case("three", dropout=dropout), []
    for lists in (False, True):
        if lists:
            in_lists(monkeypatch)
        outputs = list(case.outputs())
        outputs[unused] = NoGradient.apply(outputs[unused])
        grads = torch.autograd.grad(outputs, case.variables, cotangents_of(outputs), allow_unused=True)
        found.append([grad for grad in grads if grad is not None])
        assert len(found[-1]) == len(grads) - 2
    assert_same_bits(*found)


def three(*extras, **options):
    return [make(8, 6, 2, seed=i, extras=extra, **options) for i, extra in enumerate(extras)]


USUAL = Precision(*[torch.float64] * 4)
NOT_OF_THE_STRUCTURE = {
    "two": three((LORA,), (LORA,)),
    "four": three((LORA,), (LORA,), (LORA,), (LORA,)),
    "the first is not dropped": three((LORA,), (DROPPED,), (DROPPED,)),
    "the second is dropped": three((LORA,), (DROPPED,), (LORA,)),
    "the third is dropped": three((LORA,), (LORA,), (DROPPED,)),
    "a bias of B": three((LORA,), (BIASED,), (LORA,)),
    "the last has none": three((LORA,), (LORA,), ()),
    "A of two dtypes": [*three((LORA,), (LORA,)), make(8, 6, 2, lora_dtype=FP32)],
}


@pytest.mark.parametrize("name", NOT_OF_THE_STRUCTURE)
def test_other_structures_are_left(name):
    x = torch.randn(3, 8, dtype=torch.float64)
    assert trained_three(x, three((LORA,), (LORA,), (LORA,)), USUAL) is not None
    assert trained_three(x, NOT_OF_THE_STRUCTURE[name], USUAL) is None


def test_the_widest_rows_decide_whether_pieces_are_multiplied(monkeypatch):
    """Which lists do, on a device: rows with as many elements as one of the outputs has are asked about."""
    x, wide, seen = torch.randn(3, 8, dtype=BF16), Precision(BF16, FP32, BF16, FP32), []
    projections = [make(8, size, 2, dtype=BF16, lora_dtype=FP32) for size in (4, 64, 4)]
    monkeypatch.setattr(straight_one, "bf16x3", lambda *args: seen.append(args[1:]) or len(seen) > 1)
    with choosing(emulated=True):
        assert trained_three(x, projections, wide) is not None
        assert trained_three(x, projections, wide) is None
    assert seen == [(wide, 3 * 64)] * 2
