"""Rounding errors of patched experts and routers, at most 1.1 times PEFT's own, in every mixture of dtypes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from experts_cases import IMPLEMENTATIONS, adapted, inputs, results
from torch import nn

import patchkit
from patchkit.testing import Result, RoundingErrors, add_lora

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

DRAWS = 8
SUMMED = 100
"""At least as many products are summed for one element on its way: widths, ranks and tokens. It matters in float32."""


def with_adapters_in(model, dtype):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return model


CASES = {
    "all in one dtype": lambda model, dtype: (model.to(dtype), None),
    "float32 adapters": lambda model, dtype: (with_adapters_in(model.to(dtype), torch.float32), None),
    "under autocast": lambda model, dtype: (with_adapters_in(model.to(dtype), torch.float32), dtype),
    "float32 under autocast": lambda model, dtype: (model.float(), dtype),
}
"""The model in a low precision, and that of autocast."""


def run(model, given, autocast):
    dtype = torch.bfloat16 if autocast is None else autocast
    with torch.autocast("cpu", dtype, enabled=autocast is not None):
        return results(model, given)


def in_float64(model):
    """A copy; torch's grouped products take no float64."""
    wide = copy.deepcopy(model).double()
    for module in wide.modules():
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"
    return wide


def measured(make, inputs_of, name, dtype):
    """Failures of outputs and gradients over draws, and the level at which the patched side ran."""
    errors, levels = RoundingErrors(), set()
    for draw in range(DRAWS):
        model, autocast = CASES[name](make(draw), dtype)
        ours = copy.deepcopy(model)
        levels |= {row.level for row in patchkit.apply(ours).rows}
        given = inputs_of(next(model.parameters()).dtype, draw)
        wide = tuple(
            tensor.detach().double().requires_grad_() if tensor.is_floating_point() else tensor for tensor in given
        )
        truth = run(in_float64(model), wide, None)
        upstream, found = run(model, given, autocast), run(ours, given, autocast)
        for key, tensor in truth.items():
            kind = key.replace("default", "")
            errors.add_draw(kind, [Result(tensor, upstream[key], found[key])], SUMMED)
    assert levels == {"fused"}
    return errors.failures()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["plain", "clamped"])
def test_experts(kind, implementation, name, dtype):
    """With the routing given, which is the same for all three."""

    def make(draw):
        return adapted(kind, implementation, dtype=torch.float32, seed=draw)

    def inputs_of(dtype, draw):
        return inputs(dtype, tokens=24, seed=draw)

    assert not measured(make, inputs_of, name, dtype)


class Router(nn.Module):
    """What transformers' routers compute before they choose; the scores are returned."""

    def __init__(self, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 32, generator=torch.Generator().manual_seed(seed)) * 32**-0.5)

    def forward(self, x):
        return F.linear(x, self.weight)


class WideRouter(Router):
    """As most routers: whatever the model's dtype, scores in float32."""

    def forward(self, x):
        return F.linear(x.type(torch.float32), self.weight.type(torch.float32))


class Routed(nn.Module):
    """A router in a module, called like the experts of these tests."""

    def __init__(self, kind, seed):
        super().__init__()
        self.gate = kind(seed)

    def forward(self, x, index, weights):
        return self.gate(x) * weights


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [Router, WideRouter])
def test_routers(kind, name):
    def make(draw):
        options = {"target_modules": [], "target_parameters": ["gate.weight"], "task_type": None}
        return add_lora(Routed(kind, draw), seed=draw, r=4, **options)

    def inputs_of(dtype, draw):
        generator = torch.Generator().manual_seed(draw)
        x, weights = torch.randn(40, 32, generator=generator), torch.rand(40, 8, generator=generator)
        return x.to(dtype).requires_grad_(), torch.zeros(()), weights.to(dtype).requires_grad_()

    assert not measured(make, inputs_of, name, torch.bfloat16)
