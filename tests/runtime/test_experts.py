"""Experts with adapters on their stacked weights, in every kind and implementation, against PEFT itself."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from experts_cases import (
    EXPERTS,
    HIDDEN,
    IMPLEMENTATIONS,
    INNER,
    KINDS,
    TOP_K,
    Layer,
    adapted,
    assert_equal,
    inputs,
    parameters_of,
    patched,
    results,
    with_second,
)

import patchkit
from patchkit.testing import count_flops, fused_calls, saved_bytes

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

# torch's grouped products take no float64.
DTYPES = {"eager": torch.float64, "batched_mm": torch.float64, "grouped_mm": torch.float32}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
CALLS = {"eager": "lora_linear", "batched_mm": "lora_stack", "grouped_mm": "lora_stack"}


def compare(model, given=None, *, dtype):
    """Patched and plain agree; the fused functions that ran."""
    ours, report = patched(model)
    assert [(row.part, row.level, row.reason) for row in report.rows] == [("experts", "fused", "")]
    wanted = results(model, given)
    with fused_calls() as calls:
        found = results(ours, given)
    assert_equal(wanted, found, TOLERANCES[dtype])
    return Counter(calls)


@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)], ids=["up", "down", "both"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_implementation(kind, implementation, which):
    dtype = DTYPES[implementation]
    names = parameters_of(kind)[which]
    calls = compare(adapted(kind, implementation, names=names, dtype=dtype), dtype=dtype)
    assert calls == {CALLS[implementation]: len(names) * (EXPERTS if implementation == "eager" else 1)}


OPTIONS = {
    "rank 1": {"r": 1},
    "rank 5": {"r": 5},
    "alpha": {"lora_alpha": 3},
    "rslora": {"use_rslora": True},
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_peft(name, implementation):
    dtype = DTYPES[implementation]
    compare(adapted(implementation=implementation, dtype=dtype, **OPTIONS[name]), dtype=dtype)


INPUTS = {
    "no tokens": lambda dtype: inputs(dtype, tokens=0),
    "one token": lambda dtype: inputs(dtype, tokens=1),
    "few experts": lambda dtype: inputs(dtype, hit=TOP_K),
    "more tokens": lambda dtype: inputs(dtype, tokens=50),
    "not contiguous": lambda dtype: (
        inputs(dtype)[0].detach().t().contiguous().t().requires_grad_(),
        *inputs(dtype)[1:],
    ),
    "no gradient of x": lambda dtype: (inputs(dtype)[0].detach(), *inputs(dtype)[1:]),
    "no gradient of the weights": lambda dtype: (*inputs(dtype)[:2], inputs(dtype)[2].detach()),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", INPUTS)
def test_every_input(name, implementation):
    dtype = DTYPES[implementation]
    compare(adapted(implementation=implementation, dtype=dtype), INPUTS[name](dtype), dtype=dtype)


@pytest.mark.parametrize("trained", [("lora_A",), ("lora_B",), ()], ids=["A", "B", "nothing"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_trained(implementation, trained):
    dtype = DTYPES[implementation]
    model = adapted(implementation=implementation, dtype=dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(word in name for word in trained))
    compare(model, dtype=dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["plain", "clamped"])
def test_several_adapters(kind, implementation):
    dtype = DTYPES[implementation]
    compare(with_second(adapted(kind, implementation, dtype=dtype), kind), dtype=dtype)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_second_derivatives(implementation):
    model = adapted("clamped", implementation)
    ours, _ = patched(model)
    x, index, weights = inputs(tokens=3)
    found = []
    for one in (model, ours):
        variables = [x, weights, *[parameter for parameter in one.parameters() if parameter.requires_grad]]
        first = torch.autograd.grad(one(x, index, weights).square().sum(), variables, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), variables))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-11 * a.norm()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_implementation_may_change_between_calls(implementation):
    model = adapted(dtype=torch.float32)
    ours, _ = patched(model)
    for one in (model, ours):
        one.base_model.model.experts.get_base_layer().config._experts_implementation = implementation
    with fused_calls() as calls:
        found = results(ours)
    assert set(calls) == {CALLS[implementation]}
    assert_equal(results(model), found, 1e-5)


def test_the_parameters_stay_where_they_are():
    """Nothing of the module changes but what it finds while it runs, also when it fails."""
    model = adapted()
    ours, _ = patched(model)
    inner = ours.base_model.model.experts.get_base_layer()
    before = {**vars(inner)}, list(ours.state_dict()), type(inner)
    results(ours)
    with pytest.raises((IndexError, RuntimeError)):
        ours(inputs()[0], torch.full((7, TOP_K), EXPERTS + 3), inputs()[2])
    assert (vars(inner), list(ours.state_dict()), type(inner)) == before
    assert_equal(results(model), results(ours))


def test_switched_off():
    model = adapted()
    report = patchkit.apply(model, experts=False)
    assert [(row.level, row.reason) for row in report.rows] == [("upstream", "switched off (experts=False)")]


def test_experts_without_an_adapter_are_no_part():
    model = Layer("plain")
    with pytest.warns(UserWarning, match="no LoRA|nothing"):
        report = patchkit.apply(model)
    assert not report.rows


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bytes_and_flops(implementation):
    """No stack is kept or made: much less than PEFT keeps, and no more products."""
    dtype, rank = DTYPES[implementation], 2
    model = adapted(implementation=implementation, dtype=dtype, r=rank)
    ours, _ = patched(model)
    x, index, weights = inputs(dtype, tokens=12)

    def forward(one):
        return one(x, index, weights)

    kept = [saved_bytes(partial(forward, one), exclude=[one, x, weights]) for one in (model, ours)]
    flops = [count_flops(lambda one=one: forward(one).sum().backward()) for one in (model, ours)]
    stacks = EXPERTS * (2 * INNER * HIDDEN + INNER * HIDDEN)
    copies_of_b = EXPERTS * rank * (2 * INNER + HIDDEN)
    reduced = 2 * index.numel() * rank
    assert kept[1] <= kept[0] - (stacks - copies_of_b - reduced) * x.element_size()
    assert flops[1] < flops[0]
