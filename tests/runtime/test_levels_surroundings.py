"""What is looked at around a call: nothing but flags as a rule, and everything where one of them says so."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit.adapters.peft import FORMULA
from patchkit.runtime import levels
from patchkit.runtime.levels import Input, input_of

X = torch.ones(2, 4)


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def directly(look):
    return look(X)


def in_a_transform(look):
    found = []
    torch.func.vmap(lambda _: found.append(look(X)) or X)(X)
    return found[0]


def traced(look):
    found = []
    torch.jit.trace(lambda x: found.append(look(X)) or x + 1, X, check_trace=False)
    return found[0]


WAYS = {
    "nothing": (nullcontext, directly, False, None),
    "gradients off": (torch.no_grad, directly, False, None),
    "autocast": (lambda: torch.autocast("cpu"), directly, False, None),
    "a function mode": (Functions, directly, True, "inside the function mode test_levels_surroundings.Functions"),
    "a default device": (lambda: DeviceContext(torch.device("cpu")), directly, True, None),
    "a dispatch mode": (Dispatched, directly, True, "inside the dispatch mode test_levels_surroundings.Dispatched"),
    "a transform": (nullcontext, in_a_transform, True, "inside a torch.func transform"),
    "forward-mode differentiation": (forward_ad.dual_level, directly, True, "inside forward-mode differentiation"),
    "a trace": (nullcontext, traced, True, "inside torch.jit.trace"),
}


@pytest.fixture(autouse=True)
def _looked_up():
    """What a formula is made of was looked up, as it is from the first call on."""
    assert FORMULA.replaced() is None
    assert FORMULA.intact()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WAYS)
def test_surroundings_are_looked_at_where_a_flag_says_so(name, monkeypatch):
    context, way, looked_at, reason = WAYS[name]
    asked, look_around = [], levels._surroundings
    monkeypatch.setattr(levels, "_surroundings", lambda: asked.append(name) or look_around())
    with context():
        found = way(input_of)
    assert bool(asked) == looked_at
    assert found == reason if reason else isinstance(found, Input)


def test_a_formula_that_is_not_known_to_hold_is_looked_up(monkeypatch):
    asked = []
    monkeypatch.setattr(levels, "_surroundings", lambda: asked.append("asked"))
    FORMULA.intact = lambda: False
    try:
        assert isinstance(input_of(X), Input)
        assert asked == ["asked"]
    finally:
        assert FORMULA.replaced() is None  # which looks everything up again
