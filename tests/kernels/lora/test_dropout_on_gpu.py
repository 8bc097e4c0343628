"""Dropout as it is drawn, kept and applied on a GPU, on a CPU that is made to take that way with the draws of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from straight_ways import in_lists
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from without_lists import PRECISIONS, SIZES, Case, assert_same_bits, checkpointed_in_a_mode, kept_by, total

from patchkit_kernels.lora import straight_backward, straight_dropped, straight_one
from patchkit_kernels.ops import dropout, dropout_once
from patchkit_kernels.ops.dropout import pack_mask, unpack_mask
from patchkit_kernels.ops.registration import dispatch_modes
from patchkit_kernels.ops.triton_support import TRITON_DTYPES

FORMS = {"bits": 0, "bytes": 2**16}
EXACT, ROUNDED = 1e-12, 2e-2
"""Of the largest element: in float64, and with bfloat16 in between, whatever the dtype of a result."""

each_form = pytest.mark.parametrize("form", FORMS)
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
each_part = pytest.mark.parametrize("part", SIZES)


class Seen(TorchDispatchMode):
    """Sees the operations and changes none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def native_dropout(x: Tensor, p: float, train: bool) -> tuple[Tensor, Tensor]:
    """As a GPU gives it, drawn as this CPU draws."""
    noise = torch.empty_like(x).bernoulli_(1.0 - p)
    return x * noise.div(1.0 - p), noise != 0


def launch_masked(x: Tensor, packed: Tensor, scale: float, result: Tensor) -> None:
    wide = x.double() if x.dtype is torch.float64 else x.float()
    result.copy_(wide * unpack_mask(packed, x.shape) * scale)


def runs_kernel(tensor: Tensor) -> bool | None:
    return None if dispatch_modes() else tensor.dtype in TRITON_DTYPES


def as_on_a_gpu(patch: Any, form: str, launched: list[str] | None = None) -> None:
    """The kernels are not run; what they compute is."""
    seen = [] if launched is None else launched
    for module in (dropout, dropout_once):
        patch.setattr(module, "FUSED_DROPOUT_DEVICES", ("cpu",))
    patch.setattr(torch, "native_dropout", native_dropout)
    patch.setattr(dropout_once, "UNPACKED_ON_GPU", FORMS[form])
    patch.setattr(dropout_once, "SMALL", 0)
    patch.setattr(dropout_once, "runs_kernel", runs_kernel)
    patch.setattr(dropout_once, "launch_pack_mask", lambda mask: seen.append("pack") or pack_mask(mask))
    patch.setattr(dropout_once, "launch_masked", lambda *args: seen.append("masked") or launch_masked(*args))
    for module in (straight_backward, straight_dropped, straight_one):
        patch.setattr(module, "factors_of", lambda *args: None)


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = EXACT) -> None:
    for one, other in zip(found, expected, strict=True):
        bound = tolerance * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, rtol=0.0, atol=bound)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x_grad", [True, False])
@each_form
@each_precision
@each_part
def test_the_numbers_of_a_cpu(part, precision, form, x_grad, bias, monkeypatch):
    """Within rounding: the same masks, gradients and draws that come next."""
    case = Case(part, precision, 0.4, bias=bias)
    case.x.requires_grad_(x_grad)
    expected = case.results()
    as_on_a_gpu(monkeypatch, form)
    found = case.results()
    assert_close(found, expected, EXACT if precision == "one dtype" else ROUNDED)


@each_form
@each_precision
@each_part
def test_the_bits_that_lists_give(part, precision, form, monkeypatch):
    case = Case(part, precision, 0.4)
    as_on_a_gpu(monkeypatch, form)
    found = case.results()
    in_lists(monkeypatch)
    assert_same_bits(found, case.results())


@each_form
@each_part
def test_masks_are_kept_in_this_form_and_in_the_order_of_lists(part, form, monkeypatch):
    case = Case(part, "one dtype", 0.4)
    as_on_a_gpu(monkeypatch, form)
    found = kept_by(case.outputs())
    kind, other = ("torch.uint8", "torch.bool") if form == "bits" else ("torch.bool", "torch.uint8")
    assert sum(kind in one for one in found) == len(SIZES[part])
    assert not any(other in one for one in found)
    in_lists(monkeypatch)
    assert found == kept_by(case.outputs())


@each_form
@each_part
def test_what_general_code_differentiates(part, form, monkeypatch):
    """A second derivative, a backward in a mode, and one of a part of the tensors."""
    case = Case(part, "one dtype", 0.4)
    expected = case.results()
    second = [torch.autograd.grad(total(case.outputs()), case.variables, create_graph=True)]
    second = torch.autograd.grad(sum((one**2).sum() for one in second[0]), case.variables)
    as_on_a_gpu(monkeypatch, form)
    assert_close(case.results(backward=Seen), expected)
    some = torch.autograd.grad(total(case.outputs()), case.variables[1:2])
    assert_close(some, torch.autograd.grad(total(case.outputs()), case.variables)[1:2])
    found = torch.autograd.grad(total(case.outputs()), case.variables, create_graph=True)
    assert_close(torch.autograd.grad(sum((one**2).sum() for one in found), case.variables), second)


def test_few_elements_launch_nothing_and_many_no_more_than_two_kernels_for_each_use(monkeypatch):
    counted = {}
    for form in FORMS:
        with monkeypatch.context() as patch:
            launched: list[str] = []
            as_on_a_gpu(patch, form, launched)
            Case("three", "autocast", 0.4).results()
            counted[form] = {name: launched.count(name) for name in ("pack", "masked")}
    # Drawn in float32 and read in bfloat16: x is dropped by a kernel in forward and again in backward.
    assert counted == {"bits": {"pack": 3, "masked": 6}, "bytes": {"pack": 0, "masked": 0}}


def test_x_is_not_cast_to_the_dtype_in_which_dropout_is_drawn(monkeypatch):
    """Nor back."""
    as_on_a_gpu(monkeypatch, "bits")
    case = Case("one", "autocast", 0.4)
    monkeypatch.setattr(straight_one, "with_casts", lambda given, *args, **options: given)
    cast = []
    for module in (dropout_once, straight_backward):
        monkeypatch.setattr(module, "cast_one", lambda tensor, dtype: cast.append(dtype) or tensor.to(dtype))
    case.outputs()[0].sum().backward()
    assert torch.float32 not in cast


@each_form
@each_part
def test_a_checkpoint_that_is_made_again_in_a_mode(part, form, monkeypatch):
    """It compares what is saved with what was."""
    as_on_a_gpu(monkeypatch, form)
    checkpointed_in_a_mode(Case(part, dropout=0.4), EXACT)


@each_form
@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32], ids=str)
def test_what_float64_adapters_read_is_not_rounded(base, form, monkeypatch):
    """Their kernels are torch's own; x is in a narrower dtype."""
    as_on_a_gpu(monkeypatch, form)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 8, generator=generator, dtype=torch.float64).to(base)
    mask = torch.rand(6, 8, generator=generator) > 0.3
    kept = mask if form == "bytes" else pack_mask(mask)
    again = dropout_once.drop_again(x, kept, 0.3, torch.float64)
    torch.testing.assert_close(again, x.double() * mask / 0.7, rtol=1e-15, atol=0.0)
    total = torch.zeros(6, 8, dtype=torch.float64)
    dropout_once.add_dropped_again_(total, x.double(), kept, 0.3)
    torch.testing.assert_close(total, x.double() * mask / 0.7, rtol=1e-15, atol=0.0)


@each_form
def test_what_is_read_again_is_rounded_once(form, monkeypatch):
    """Scaled in the wider of two dtypes, as PEFT does: x in float32 and read in bfloat16, and a sum of float32."""
    as_on_a_gpu(monkeypatch, form)
    generator = torch.Generator().manual_seed(4)
    x, mask = torch.randn(64, 8, generator=generator), torch.rand(64, 8, generator=generator) > 0.3
    kept = mask if form == "bytes" else pack_mask(mask)
    exact = x * mask * (1.0 / (1.0 - 0.3))
    assert torch.equal(dropout_once.drop_again(x, kept, 0.3, torch.bfloat16), exact.bfloat16())
    total, rows = torch.zeros(64, 8), x.bfloat16()
    if form == "bytes":  # of bits, the op's reference, which is not what runs on a GPU, rounds the product
        dropout_once.add_dropped_again_(total, rows, kept, 0.3)
        assert torch.equal(total, rows.float() * mask * (1.0 / (1.0 - 0.3)))
