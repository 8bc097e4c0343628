"""Adapted parameters of modules that nobody marked: their source says what they do, or PEFT's own code runs."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import patchkit
from patchkit.testing import add_lora, fused_calls

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

WIDTH, OUT, EXPERTS = 6, 5, 3


class InBatches(nn.Module):
    """As llama4: every expert has as many tokens; stacks ``[experts, in, out]``."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, OUT))
        self.down = nn.Parameter(torch.randn(EXPERTS, OUT, WIDTH))

    def forward(self, x):
        x = x.view(self.up.shape[0], -1, WIDTH)
        return torch.bmm(F.silu(torch.bmm(x, self.up)), self.down).view(-1, WIDTH)


class OneByOne(nn.Module):
    """As jetmoe: a list of inputs, one for each expert."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, OUT, WIDTH))

    def forward(self, x, sizes=(2, 0, 4)):
        return torch.cat([F.linear(part, self.weight[i]) for i, part in enumerate(x.split(sizes))])


class Router(nn.Module):
    """As gpt_oss: scores with a bias, and what they choose."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(EXPERTS, WIDTH)), nn.Parameter(torch.randn(EXPERTS))

    def forward(self, x):
        scores = F.linear(x, self.weight, self.bias)
        values, indices = torch.topk(scores, 2, dim=-1)
        return scores, values.softmax(-1), indices


class Tied(nn.Module):
    """A weight that is used twice, on either side."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OUT, WIDTH))

    def forward(self, x):
        return torch.tanh(F.linear(x, self.weight)) @ self.weight


class Squared(nn.Module):
    """Not a product of x with the weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(OUT, WIDTH))

    def forward(self, x):
        return F.linear(x, self.weight * self.weight)


class Model(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


CASES = {
    "in batches": (InBatches, ["up", "down"], "experts", {"lora_stack": 2}),
    "in batches, one alone": (InBatches, ["up"], "experts", {"lora_stack": 1}),
    "one by one": (OneByOne, ["weight"], "experts", {"lora_linear": 3}),
    "a router": (Router, ["weight"], "linear", {"lora_linear": 1}),
    "a weight used twice": (Tied, ["weight"], "linear", {"lora_linear": 2}),
    "the weight of a linear layer": (lambda: nn.Linear(WIDTH, OUT), ["weight"], "linear", {"lora_linear": 1}),
    "squared": (Squared, ["weight"], "linear", {}),
}
REASONS = {"squared": "what its forward does with weight is not known"}


def results(model):
    x = torch.linspace(-2.0, 2.0, 6 * WIDTH, dtype=torch.float64).reshape(6, WIDTH).sin().requires_grad_()
    model.zero_grad()
    found = model(x)
    outputs = found if isinstance(found, tuple) else (found,)
    sum((y.square() * torch.arange(1.0, y.numel() + 1).view_as(y)).sum() for y in outputs if y.requires_grad).backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*outputs, x.grad, *grads]


@pytest.mark.parametrize("config", [{}, {"r": 1, "lora_alpha": 5}], ids=["", "r1"])
@pytest.mark.parametrize("name", CASES)
def test_modules(name, config):
    make, parameters, part, calls = CASES[name]
    torch.manual_seed(0)
    options = {"target_modules": [], "target_parameters": [f"inner.{one}" for one in parameters], "task_type": None}
    model = add_lora(Model(make()), **(options | {"r": 2} | config)).double()
    ours = copy.deepcopy(model)
    (row,) = patchkit.apply(ours).rows
    assert (row.part, row.level) == (part, "fused" if calls else "upstream")
    assert row.reason.endswith(REASONS.get(name, ""))
    wanted = results(model)
    with fused_calls() as made:
        found = results(ours)
    assert Counter(made) == calls
    for a, b in zip(wanted, found, strict=True):
        assert b.dtype == a.dtype
        assert (b - a).double().norm() <= 1e-12 * a.double().norm()


def test_the_choice_of_a_router_is_that_of_its_scores():
    """Nothing but the product is replaced."""
    torch.manual_seed(0)
    options = {"target_modules": [], "target_parameters": ["inner.weight"], "task_type": None}
    ours = add_lora(Model(Router()), **options).double()
    patchkit.apply(ours)
    scores, weights, indices = ours(torch.randn(50, WIDTH, dtype=torch.float64))
    values, chosen = torch.topk(scores, 2, dim=-1)
    assert torch.equal(indices, chosen)
    assert torch.equal(weights, values.softmax(-1))
