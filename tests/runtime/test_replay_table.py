"""What a recomputation makes of each projection and block, from what the forward made of it and what is found now."""

from __future__ import annotations

import pytest
import torch

from patchkit.runtime.choice import Choice
from patchkit.runtime.layers import _merge as merge_layers
from patchkit.runtime.levels import GLOBAL_HOOK, Ready
from patchkit.runtime.loss import ReadyLoss
from patchkit.runtime.loss import _merge as merge_losses
from patchkit.runtime.replay import THEN_CALLED, Watched, merge_choices, merge_readings, replay
from patchkit_kernels.lora.cross_entropy import Form
from patchkit_kernels.lora.projection import Adapter, Precision, Projection

PRECISION = Precision(*[torch.float32] * 4)
PLAIN = Ready(Projection(torch.ones(3, 4), None, ()), PRECISION)
FUSED = Ready(PLAIN.projection._replace(adapters=(Adapter(torch.ones(2, 4), torch.ones(3, 2)),)), PRECISION)
NOW = Ready(FUSED.projection._replace(bias=torch.ones(3)), PRECISION)
ODD = "it is odd"
HOOKS = ["a forward hook is registered on it", "a backward hook is registered on it", GLOBAL_HOOK]
WATCHES = [*HOOKS, f"base layer: {HOOKS[0]}"]

READINGS = [
    # then, now, what is made of it
    (None, NOW, THEN_CALLED),
    (None, HOOKS[0], THEN_CALLED),
    (ODD, NOW, THEN_CALLED),
    (HOOKS[0], NOW, THEN_CALLED),
    (PLAIN, NOW, THEN_CALLED),
    (PLAIN, HOOKS[0], THEN_CALLED),
    (FUSED, NOW, NOW),
    (FUSED, PLAIN, PLAIN),
    (FUSED, ODD, ODD),
    (FUSED, f"{HOOKS[0]}, and more", f"{HOOKS[0]}, and more"),
    *[(FUSED, reason, Watched(FUSED)) for reason in WATCHES],
]


@pytest.mark.parametrize(("then", "now", "expected"), READINGS, ids=str)
def test_readings(then, now, expected):
    found = merge_readings(then, now)
    assert found is expected or (found == expected and type(found) is type(expected))


LAYERS = [
    (None, NOW, THEN_CALLED),
    (ODD, NOW, THEN_CALLED),
    (None, HOOKS[0], THEN_CALLED),
    (FUSED, NOW, NOW),
    (FUSED, ODD, ODD),
    *[(FUSED, reason, Watched(FUSED)) for reason in WATCHES],
]


@pytest.mark.parametrize(("then", "now", "expected"), LAYERS, ids=str)
def test_layers_that_are_patched_where_they_stand(then, now, expected):
    found = merge_layers(then, now)
    assert found is expected or (found == expected and type(found) is type(expected))


LOSS = ReadyLoss(FUSED, Form(), torch.ones(1, dtype=torch.int64), None)


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        (None, LOSS, "it was called when this was run first"),
        (ODD, LOSS, "it was called when this was run first"),
        (LOSS, LOSS, LOSS),
        (LOSS, ODD, ODD),
    ],
    ids=["not run then", "called then", "both times", "odd now"],
)
def test_losses(then, now, expected):
    found = merge_losses(then, now)
    assert found is expected or found == expected


def fused(*readings):
    return Choice("fused", readings, PRECISION)


def left(*readings, reason=None):
    return Choice("alone", readings, None, reason)


WHOLE = fused(FUSED, PLAIN)
CHOICES = {
    "not patched then": (None, WHOLE, Choice("upstream", (THEN_CALLED, THEN_CALLED))),
    "whole both times": (WHOLE, fused(NOW, PLAIN), fused(NOW, PLAIN)),
    "whole then, odd now": (WHOLE, left(FUSED, ODD), left(FUSED, ODD)),
    "whole then, called for another reason": (WHOLE, left(FUSED, PLAIN, reason=ODD), left(FUSED, PLAIN, reason=ODD)),
    "whole then, for no reason that is told": (WHOLE, left(FUSED, PLAIN), left(FUSED, PLAIN)),
    "a hook on one now": (WHOLE, left(FUSED, HOOKS[0]), Watched(WHOLE)),
    "hooks on both": (WHOLE, left(HOOKS[1], GLOBAL_HOOK), Watched(WHOLE)),
    "a hook on one, another odd": (WHOLE, left(HOOKS[0], ODD), left(HOOKS[0], ODD)),
    "a hook on one, the block for what follows": (WHOLE, left(FUSED, HOOKS[0], reason=ODD), Watched(WHOLE)),
    "a hook on the activation": (WHOLE, left(FUSED, PLAIN, reason=HOOKS[0]), Watched(WHOLE)),
    "alone both times": (left(FUSED, ODD), left(NOW, ODD), left(NOW, THEN_CALLED)),
    "alone then, whole now": (left(FUSED, PLAIN), fused(NOW, PLAIN), left(NOW, THEN_CALLED)),
    "alone then, a hook now": (left(FUSED, PLAIN), left(HOOKS[0], PLAIN), left(Watched(FUSED), THEN_CALLED)),
    "called then": (
        Choice("upstream", (PLAIN, PLAIN)),
        fused(NOW, PLAIN),
        Choice("upstream", (THEN_CALLED, THEN_CALLED)),
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices(name):
    then, now, expected = CHOICES[name]
    found = merge_choices(then, now)
    assert type(found) is type(expected)
    assert found == expected


@pytest.mark.parametrize("merged", [WHOLE, left(NOW, ODD)], ids=["whole", "alone"])
def test_what_is_merged_is_run_once(merged):
    x, modules, ran = torch.ones(1), [torch.nn.Linear(1, 1)], []
    assert replay(lambda *given: ran.append(given) or "result", x, modules, WHOLE, merged) == "result"
    assert ran == [(x, modules, merged)]


def test_what_is_watched_is_called_for_its_value_and_computed_for_what_it_saves():
    """From the same random numbers, and only what is computed fused is saved."""
    x, ran, saved = torch.ones(1, requires_grad=True), [], []

    def run(x, modules, choice):
        ran.append((choice, torch.rand(1)))
        return x * x

    called = left(FUSED, HOOKS[0])
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(len(ran)) or tensor, lambda tensor: tensor
    ):
        found = replay(run, x, [], called, Watched(WHOLE))
    assert [choice for choice, _ in ran] == [called, WHOLE]
    assert torch.equal(ran[0][1], ran[1][1])
    assert set(saved) == {2}
    found.backward()
    assert x.grad == 2
