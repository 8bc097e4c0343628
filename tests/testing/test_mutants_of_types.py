"""The verdict on a whole model type: rounding, kinks and conditioning refuse nothing, and every fault is different.

float32 alone cannot judge: in ctrl one sign of a ReLU flips, and a gradient is off by 4e-4 where float64 agrees. So
float64 decides where float32 misses its tolerance. A fault that hides behind that is the danger: each of these is put
into a type that float32 judges, and into one that float64 has to.
"""

from __future__ import annotations

import pytest
from fused_mutants import (
    bare,
    base_term_missing_from_dx,
    gradient_of,
    injected,
    lora_term_missing_from_dx,
    on_adapters,
    on_projections,
    scale_gradient,
    second_projection_without_adapter,
    times,
)

from patchkit.check.numeric.model_types import examine

EVERY = ("lora_linear", "lora_projections", "lora_gated_mlp", "lora_mlp")
ALONE, UNGATED, TOGETHER = ("lora_linear",), ("lora_mlp",), ("lora_projections",)


def another_activation(function, x, *arguments):
    names = {"relu": "gelu_erf", "gelu_tanh": "gelu_erf", "gelu_erf": "gelu_tanh", "silu": "quick_gelu"}
    return function(x, *(names.get(one, one) if isinstance(one, str) else one for one in arguments))


def swaps_up_and_down(function, x, up, down, *arguments):
    """Their adapters' scalings and dropouts, which differ by a factor that one of them is given."""
    return function(x, on_factor(up), down, *arguments)


def on_factor(projection):
    return projection._replace(adapters=tuple(one._replace(scaling=one.scaling * 1.01) for one in projection.adapters))


FAULTS = {
    "outputs 0.1 % off": (lambda f, x, *a: times(f(x, *a), 1.001), EVERY),
    "scale left out": (on_adapters(lambda a: a._replace(scaling=1.0)), EVERY),
    "adapter left out": (on_projections(bare), ALONE),
    "dX 1 % off": (lambda f, x, *a: f(scale_gradient(x, 1.01), *a), EVERY),
    "dA 0.1 % off": (gradient_of("lora_a", lambda a: 1.001), EVERY),
    "dB of another sign": (gradient_of("lora_b", lambda a: -1.0), EVERY),
    "no LoRA term in dX of a layer": (lora_term_missing_from_dx, ALONE),
    "another activation": (another_activation, UNGATED),
    "one adapter of an MLP 1 % off": (swaps_up_and_down, UNGATED),
}
TOGETHER_FAULTS = {
    "outputs in another order": lambda function, x, *arguments: tuple(function(x, *arguments))[::-1],
    "the second without its adapter": second_projection_without_adapter,
    "no LoRA term in dX": lora_term_missing_from_dx,
    "no base term in dX": base_term_missing_from_dx,
}
TYPES = {  # a type: the functions that it runs through
    "gpt2": ("causal", {"lora_mlp", "lora_linear"}),
    "opt": ("causal", {"lora_projections", "lora_linear", "lora_mlp"}),
    "t5": ("seq2seq", {"lora_projections", "lora_linear", "lora_mlp"}),
}


def verdict(model_type, head, fault=None, only=EVERY):
    known = {name for name in only if name in TYPES.get(model_type, ("", set(only)))[1]}
    with injected(fault or (lambda function, x, *arguments: function(x, *arguments)), tuple(sorted(known))) as calls:
        found = examine(model_type, head)
    assert set(calls) == known, "the fault was not reached"
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("model_type", TYPES)
def test_a_fault_is_different(model_type, fault):
    wrong, only = FAULTS[fault]
    found = verdict(model_type, TYPES[model_type][0], wrong, only)
    assert found.state == "different", found
    assert found.judged_in == "float64" or "gradient" in found.reason  # one that is on one side only needs no judge


@pytest.mark.parametrize("fault", TOGETHER_FAULTS)
def test_a_fault_in_layers_of_one_variable_is_different(fault):
    found = verdict("t5", "seq2seq", TOGETHER_FAULTS[fault], TOGETHER)
    assert found.state == "different", found


@pytest.mark.parametrize("model_type", TYPES)
def test_without_a_fault_it_is_verified(model_type):
    assert verdict(model_type, TYPES[model_type][0]).state == "verified"


def test_a_type_with_kinks_is_verified():
    """ctrl, whose ReLU flips: what float32 shows is large, and no fault."""
    found = examine("ctrl", "causal")
    assert found.state == "verified"


def test_a_fault_in_a_type_with_kinks_is_different():
    wrong, _ = FAULTS["dA 0.1 % off"]
    with injected(wrong, ALONE) as calls:
        found = examine("ctrl", "causal")
    assert calls
    assert found.state == "different"
