"""The criterion of low precision sees real faults: one needless rounding, one missing term, a product in TF32."""

from __future__ import annotations

import pytest
import torch
from straight_ways import general, in_lists
from test_adapter_functions import ADAPTERS, TOTAL, errors_of

from patchkit.testing import Result, RoundingErrors, rounding_floor
from patchkit_kernels.lora import (
    backward,
    forward,
    low_rank,
    straight,
    straight_backward,
    straight_linear,
    straight_one,
)
from patchkit_kernels.lora import linear as lora_linear

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def run(*args):
    torch.manual_seed(5)
    return lora_linear.lora_linear(*args)


def rounded(dtype):
    """A function of several results, each of which was needlessly stored in another dtype in between."""

    def wrap(function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            return [None if value is None else value.to(dtype).to(value.dtype) for value in result]

        return call

    return wrap


def scaled(function):
    def call(*args, **kwargs):
        return [None if value is None else value * 1.01 for value in function(*args, **kwargs)]

    return call


def tf32(function):
    """10 bits of mantissa, as tensor cores take of float32 where they may."""

    def call(left, right, scaling):
        short = [(t.view(torch.int32) & ~0x1FFF).view(FP32) if t.dtype == FP32 else t for t in (left.clone(), right)]
        return function(*short, scaling)

    return call


FAULTS = {
    "t stored in bfloat16": ("reduce", rounded(BF16), [forward, low_rank], FP32),
    "t stored in float16": ("reduce", rounded(FP16), [forward, low_rank], FP32),
    "dA stored in bfloat16": ("d_lora_a", rounded(BF16), [backward], FP32),
    "dB stored in bfloat16": ("d_lora_b", rounded(BF16), [backward], FP32),
    "dB stored in float16": ("d_lora_b", rounded(FP16), [backward], FP32),
    "dB one hundredth too large": ("d_lora_b", scaled, [backward], BF16),
    "products of backward in TF32": ("scaled_product", tf32, [low_rank], FP32),
}


@pytest.mark.parametrize("adapters", ["lora", "two", "dora"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault, adapters, monkeypatch):
    general(monkeypatch)  # the faults are put into these functions
    name, wrong, modules, lora = FAULTS[fault]
    for module in modules:
        monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    assert errors_of(run, ADAPTERS[adapters], BF16, lora).failures(totals=[TOTAL])


def only(index, wrong):
    """The fault in one of several results."""

    def wrap(function):
        def call(*args):
            right = function(*args)
            right[index] = wrong(lambda: right)()[index]
            return right

        return call

    return wrap


def all_in_tf32(function):
    def call(rows, factors_b, *others):
        short = tf32(lambda left, right, _: (left, right))
        (row, factor) = short(rows[0], factors_b[0], None)
        return function([row], [factor], *others)

    return call


STRAIGHT_FAULTS = {
    "t stored in bfloat16": ("reduced", rounded(BF16), straight, FP32),
    "t stored in float16": ("reduced", rounded(FP16), straight, FP32),
    "dA stored in bfloat16": ("factor_gradients", only(0, rounded(BF16)), straight_linear, FP32),
    "dB stored in bfloat16": ("factor_gradients", only(1, rounded(BF16)), straight_linear, FP32),
    "dB stored in float16": ("factor_gradients", only(1, rounded(FP16)), straight_linear, FP32),
    "dB one hundredth too large": ("factor_gradients", only(1, scaled), straight_linear, BF16),
    "dt in TF32": ("_side_by_side", all_in_tf32, straight_backward, FP32),
}


@pytest.mark.parametrize("fault", STRAIGHT_FAULTS)
def test_a_fault_of_the_straight_line_is_seen(fault, monkeypatch):
    in_lists(monkeypatch)
    name, wrong, module, lora = STRAIGHT_FAULTS[fault]
    monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    assert errors_of(run, ADAPTERS["lora"], BF16, lora).failures(totals=[TOTAL])


def one_of(index, wrong):
    """The fault in one of several results, which are no list."""

    def wrap(function):
        def call(*args):
            right = function(*args)
            return tuple(wrong(lambda: right)()[i] if i == index else one for i, one in enumerate(right))

        return call

    return wrap


def in_flow(dtype):
    def wrap(function):
        def call(*args):
            total, flow = function(*args)
            return total, flow._replace(d_t=flow.d_t.to(dtype).to(flow.d_t.dtype))

        return call

    return wrap


FAULTS_OF_ONE = {
    "t stored in bfloat16": (
        "projected",
        one_of(1, lambda f: lambda: [None, *rounded(BF16)(lambda: f()[1:2])()]),
        FP32,
    ),
    "dt stored in float16": ("flown_back", in_flow(FP16), FP32),
    "dA stored in bfloat16": ("factor_gradients", one_of(0, rounded(BF16)), FP32),
    "dB stored in float16": ("factor_gradients", one_of(1, rounded(FP16)), FP32),
    "dB one hundredth too large": ("factor_gradients", one_of(1, scaled), BF16),
}


@pytest.mark.parametrize("fault", FAULTS_OF_ONE)
def test_a_fault_of_one_projection_is_seen(fault, monkeypatch):
    name, wrong, lora = FAULTS_OF_ONE[fault]
    monkeypatch.setattr(straight_one, name, wrong(getattr(straight_one, name)))
    assert errors_of(run, ADAPTERS["lora"], BF16, lora).failures(totals=[TOTAL])


def test_a_lost_bias_is_seen():
    def without_bias(x, projection, precision):
        kept = [adapter._replace(bias=torch.zeros_like(adapter.bias)) for adapter in projection.adapters]
        y = run(x, projection._replace(adapters=tuple(kept)), precision)
        return y + 0 * projection.adapters[0].bias.sum().to(y.dtype)

    assert errors_of(without_bias, ADAPTERS["lora_bias"], BF16, FP32).failures(totals=[TOTAL])


def test_what_is_within_float32s_own_rounding_is_not_judged():
    """Two orders of one sum: upstream's happens to be the better one by far more than a tenth."""
    errors, other = RoundingErrors(), RoundingErrors()
    for seed in range(4):
        left, right = torch.randn(2, 500, 96, generator=torch.Generator().manual_seed(seed))
        truth = (left.double() * right.double()).sum(1)
        in_order = torch.zeros(500)
        for k in range(96):
            in_order += left[:, k] * right[:, k]
        result = Result(truth, truth.float(), in_order)
        assert (in_order - truth).norm() > 1.5 * (truth.float() - truth).norm()
        errors.add_draw("sum", [result], summed=96)
        other.add_draw("sum", [result])
    assert not errors.failures(totals=["sum"])
    assert other.failures(totals=["sum"])


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_the_floor_is_below_one_needless_rounding_to_sixteen_bits(dtype):
    truth = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stored = (truth.to(dtype).double() - truth).square().sum().item()
    assert rounding_floor(truth, dtype) == pytest.approx(stored)
    fp16 = (truth.half().double() - truth).square().sum().item()
    assert rounding_floor(truth, dtype, summed=10_000) <= stored + 0.01 * fp16
