"""The arbiter: rounding is told from a fault, also where a gradient is zero and where upstream itself cannot tell."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import patchkit
from patchkit.check.numeric import arbiter
from patchkit.check.numeric.arbiter import arbitrate
from patchkit.runtime import fused
from patchkit.testing import add_lora, run


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, hidden):
        q, k, v = self.q(hidden), self.k(hidden), self.v(hidden)
        return self.o((q @ k.mT).softmax(-1) @ v)


class Model(nn.Module):
    """Attention over tokens, with a loss."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, hidden, use_cache=False):
        logits = self.attention(hidden)
        return SimpleNamespace(logits=logits, loss=logits.logsumexp(-1).square().mean())


class InFloat32Only(Model):
    def forward(self, hidden, use_cache=False):
        if hidden.dtype is torch.float64:
            raise RuntimeError("value cannot be converted")
        return super().forward(hidden)


class Unseeded(Model):
    generator = torch.Generator().manual_seed(3)

    def forward(self, hidden, use_cache=False):
        return super().forward(hidden + torch.rand((), generator=self.generator, dtype=hidden.dtype))


def made(cls=Model, alike=False):
    """A model with adapters, inputs, and its run; where tokens are alike, queries and keys do not matter."""
    torch.manual_seed(1)
    reference = add_lora(cls(), target_modules=["q", "k", "v", "o"], task_type=None).train()
    hidden = torch.randn(2, 1 if alike else 5, 12).expand(2, 5, 12).clone()
    inputs = {"hidden": hidden}
    return reference, inputs, run(copy.deepcopy(reference), inputs)


def patched_run(reference, inputs):
    model = copy.deepcopy(reference)
    assert len(patchkit.apply(model, trust="always").at("fused"))
    return run(model, inputs)


@pytest.mark.parametrize("alike", [False, True])
def test_rounding_is_no_difference(alike):
    reference, inputs, expected = made(alike=alike)
    verdict = arbitrate(reference, inputs, expected, patched_run(reference, inputs))
    assert verdict.outcome == "equal", verdict
    assert verdict.why == ""
    assert verdict.error < 1e-12


def test_a_gradient_that_is_zero_is_rounding_in_both():
    """Relative to itself it would differ as a whole."""
    reference, inputs, _ = made(alike=True)
    exact = copy.deepcopy(reference).double()
    truth = run(exact, {"hidden": inputs["hidden"].double()})
    zeros = arbiter._zeros(truth)
    assert {name.split(".")[3] for name in zeros} == {"q", "k"}
    assert arbiter._zeros(run(exact, {"hidden": torch.randn(2, 5, 12, dtype=torch.float64)})) == frozenset()


@pytest.mark.parametrize("function", ["lora_linear", "lora_projections"])
@pytest.mark.parametrize("alike", [False, True])
def test_a_fault_is_a_difference(function, alike, monkeypatch):
    reference, inputs, expected = made(alike=alike)
    right = getattr(fused, function)

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        return tuple(1.0001 * one for one in found) if isinstance(found, tuple) else 1.0001 * found

    monkeypatch.setattr(fused, function, wrong)
    verdict = arbitrate(reference, inputs, expected, patched_run(reference, inputs))
    assert verdict.outcome == "different"
    assert verdict.why.startswith("in float64: ")


@pytest.mark.parametrize("share", [1e-2, 1.0, float("nan")])
def test_a_gradient_where_upstreams_is_zero_is_a_difference(share):
    reference, inputs, expected = made(alike=True)
    found = patched_run(reference, inputs)
    name = next(name for name in found.gradients if ".q.lora_A" in name)
    wrong = torch.full_like(found.gradients[name], share)
    verdict = arbitrate(reference, inputs, expected, replace(found, gradients={**found.gradients, name: wrong}))
    assert verdict.outcome == "different"
    assert "upstream's is zero" in verdict.why


def test_a_larger_error_in_float32_alone_is_a_difference():
    reference, inputs, expected = made()
    found = patched_run(reference, inputs)
    worse = replace(found, outputs={name: value * (1 + 1e-4) for name, value in found.outputs.items()})
    verdict = arbitrate(reference, inputs, expected, worse)
    assert verdict.outcome == "different"
    assert "in float32 its error is" in verdict.why


@pytest.mark.parametrize(
    ("cls", "why"), [(InFloat32Only, "float64 fails upstream: RuntimeError: value"), (Unseeded, "no seed decides")]
)
def test_what_upstream_cannot_tell_is_undecided(cls, why):
    reference, inputs, expected = made(cls)
    verdict = arbitrate(reference, inputs, expected, patched_run(reference, inputs))
    assert verdict.outcome == "undecided"
    assert why in verdict.why


def test_the_norm_of_gradients_is_that_of_numbers_of_any_size():
    """Squares of float32 gradients would overflow or vanish."""
    for size in (1e30, 1e-30):
        gradients = {name: torch.full((2,), size) for name in ("first", "second")}
        assert arbiter._norm(gradients) == pytest.approx(2 * size, rel=1e-6)
    assert arbiter._norm({}) == 0.0
