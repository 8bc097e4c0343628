"""Decorators around a method: what they made stays around the patched one, they do not run again, and nothing is lost."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
import types

import pytest
import torch
from torch import nn
from transformers.utils.deprecation import deprecate_kwarg

from patchkit.arch.spec import GatedMLP
from patchkit.binding.classes import patched_class
from patchkit.binding.swap import swap
from patchkit.module_tree import PATCH
from patchkit.testing import add_lora

LOG: list[str] = []
REGISTRY: list[object] = []
BY_FUNCTION: dict[object, int] = {}


def logged(function):
    LOG.append("decorated")

    @functools.wraps(function)
    def wrapper(self, x):
        LOG.append(f"call of {function.__name__}")
        return function(self, x)

    return wrapper


def scaled(factor):
    def decorate(function):
        calls = 0

        @functools.wraps(function)
        def wrapper(self, x):
            nonlocal calls
            calls += 1
            return function(self, x) * factor + calls

        return wrapper

    return decorate


def registered(function):
    REGISTRY.append(function)
    return function


def noisy(function):
    @functools.wraps(function)
    def wrapper(self, x):
        return function(self, x + torch.rand_like(x))

    return wrapper


class Tools:
    @staticmethod
    def negated(function):
        @functools.wraps(function)
        def wrapper(self, x):
            return -function(self, x)

        return wrapper

    def shifted(self, by):
        def decorate(function):
            @functools.wraps(function)
            def wrapper(self, x):
                return function(self, x) + by

            return wrapper

        return decorate


tools = Tools()


def by_function(function):
    BY_FUNCTION[function] = 0

    @functools.wraps(function)
    def wrapper(self, x):
        BY_FUNCTION[function] += 1
        return function(self, x)

    return wrapper


def held_in_a_default(function):
    @functools.wraps(function)
    def wrapper(self, x, inner=function):
        return inner(self, x)

    return wrapper


def held_in_a_partial(function):
    inner = functools.partial(function)

    @functools.wraps(function)
    def wrapper(self, x):
        return inner(self, x)

    return wrapper


def counted_on_itself(function):
    @functools.wraps(function)
    def wrapper(self, x):
        wrapper.calls += 1
        return function(self, x)

    wrapper.calls = 0
    return wrapper


def rebound(function):
    @functools.wraps(function)
    def wrapper(self, x):
        nonlocal function
        result = function(self, x)
        function = function
        return result

    return wrapper


def delegated(function):
    return logged(function)


class Holder:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __get__(self, instance, owner=None):
        return types.MethodType(self, instance)

    def __call__(self, module, x):
        return self.function(module, x) * 2


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 12, bias=False), nn.Linear(8, 12)
        self.down_proj, self.act_fn = nn.Linear(12, 8), nn.SiLU()


class Plain(Base):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Logged(Base):
    @logged
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ScaledThenLogged(Base):
    @scaled(3.0)
    @logged
    @scaled(0.5)
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Registered(Base):
    @registered
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class RegisteredBetween(Base):
    @scaled(2.0)
    @registered
    @noisy
    @registered
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class OfAnotherObject(Base):
    @Tools.negated
    @tools.shifted(by=1.5)
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class WithoutGradient(Base):
    @torch.no_grad()
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Deprecated(Base):
    @deprecate_kwarg("hidden", new_name="x", version="99.0")
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class InItsClass(Base):
    def doubled(function):  # noqa: N805
        @functools.wraps(function)
        def wrapper(self, x):
            return 2 * function(self, x)

        return wrapper

    @doubled
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ByFunction(Base):
    @by_function
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class HeldInADefault(Base):
    @held_in_a_default
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class HeldInAPartial(Base):
    @held_in_a_partial
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class CountedOnItself(Base):
    @counted_on_itself
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Rebound(Base):
    @rebound
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Delegated(Base):
    @delegated
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Held(Base):
    @Holder
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


COPIED = (
    Logged, ScaledThenLogged, Registered, RegisteredBetween, OfAnotherObject, WithoutGradient, Deprecated, InItsClass,
)  # fmt: skip

REFUSED = {
    ByFunction: "wrapper, which wraps it, does something else with it than call it",
    HeldInADefault: "wrapper, which wraps it, does not hold it in one variable of its closure",
    HeldInAPartial: "wrapper, which wraps it, does not hold it in one variable of its closure",
    CountedOnItself: "wrapper, which wraps it, refers to itself, and may keep its state there",
    Rebound: "wrapper, which wraps it, gives its variable another value",
    Delegated: "it is wrapped by test_wrappers.logged.<locals>.wrapper: that is not what the decorators in its source make",
    Held: "it is wrapped by a test_wrappers.Holder, which is no function",
}


def says(reason, expected):
    """Whether a reason has this text. Python 3.10 knows no qualified names of code."""
    if sys.version_info < (3, 11):
        expected = re.sub(r"test_wrappers\.[\w.<>]*wrapper", "test_wrappers.wrapper", expected)
    return expected in reason


def patched(cls):
    return patched_class(cls, GatedMLP(cls.__name__), frozenset({"mlp"}))


def pair(cls):
    """An untouched copy, and the same module with the patched class."""
    torch.manual_seed(0)
    module = add_lora(cls(), target_modules=["gate_proj", "up_proj", "down_proj"], task_type=None).base_model.model
    return copy.deepcopy(module), module


def assert_equal(reference, module):
    x = torch.randn(5, 8)
    results = []
    for mlp in (reference, module):
        LOG.clear()
        torch.manual_seed(1)
        y = mlp(x)
        if y.requires_grad:
            y.square().sum().backward()
        results.append((y.detach(), [p.grad for p in mlp.parameters() if p.grad is not None], list(LOG)))
    (expected, gradients, calls), (found, own, own_calls) = results
    assert calls == own_calls
    assert len(gradients) == len(own)
    for a, b in zip([expected, *gradients], [found, *own], strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


def counts(function):
    """What the variables of a chain's closures hold that are numbers."""
    found = []
    while hasattr(function, "__wrapped__"):
        cells = zip(function.__code__.co_freevars, function.__closure__, strict=True)
        found.extend((name, cell.cell_contents) for name, cell in cells if isinstance(cell.cell_contents, (int, float)))
        function = function.__wrapped__
    return found


@pytest.mark.parametrize("cls", COPIED, ids=lambda cls: cls.__name__)
def test_what_decorators_made_stays(cls):
    LOG.clear()
    entries = list(REGISTRY)
    reference, module = pair(cls)
    target = patched(cls)
    assert isinstance(target, type), target
    assert LOG == []  # no decorator ran again
    assert entries == REGISTRY
    swap([(module, target)])
    # A count that is in the result is one for upstream's class and the patched one, as it is for two of upstream's.
    calls = dict(counts(cls.forward)).get("calls")
    if calls is None:
        assert_equal(reference, module)
    else:
        assert_counted(cls, reference, module)
    assert inspect.signature(target.forward) == inspect.signature(cls.forward)
    assert "self.apply_mlp(x)" in inspect.getsource(inspect.unwrap(target.forward))


def assert_counted(cls, reference, module):
    """Calls of both copies count in one place, so results are compared as if each were the n-th call."""
    before = dict(counts(cls.forward))
    x = torch.randn(5, 8)
    first, second, third = [_seeded(mlp, x) for mlp in (reference, module, reference)]
    after = dict(counts(cls.forward))
    assert after["calls"] == before["calls"] + 3
    assert counts(type(module).forward) == counts(cls.forward)
    # The same step from call to call, whoever made it.
    assert torch.allclose(second - first, third - second, atol=1e-5)
    assert (second - first).abs().min() > 0.5


def _seeded(mlp, x):
    torch.manual_seed(1)
    return mlp(x).detach()


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_what_cannot_be_copied_stays_upstream(cls):
    LOG.clear()
    refusal = patched(cls)
    assert says(refusal.why("mlp"), REFUSED[cls])
    assert LOG == []


@pytest.mark.parametrize("cls", [Plain, *COPIED], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("wrap", [noisy, logged, counted_on_itself], ids=lambda wrap: wrap.__name__)
def test_a_wrapper_put_on_at_run_time_is_never_dropped(cls, wrap, monkeypatch):
    monkeypatch.setattr(cls, "forward", wrap(cls.forward))
    refusal = patched(cls)
    assert says(refusal.why("mlp"), f"test_wrappers.{wrap.__name__}.<locals>.wrapper")


def test_a_wrapper_put_below_the_decorators_is_never_dropped(monkeypatch):
    """As if the decorator of the source had been given something else."""
    monkeypatch.setattr(Logged, "forward", logged(noisy(Logged.forward.__wrapped__)))
    refusal = patched(Logged)
    assert (
        "it is wrapped by test_wrappers.logged.<locals>.wrapper, test_wrappers.noisy.<locals>.wrapper: that is not what the decorators in its source make"
        in refusal.why("mlp")
    )


def test_decorators_in_another_order_are_not_those_of_the_source(monkeypatch):
    inner = ScaledThenLogged.forward.__wrapped__.__wrapped__.__wrapped__
    monkeypatch.setattr(ScaledThenLogged, "forward", logged(scaled(3.0)(inner)))
    target = patched(ScaledThenLogged)
    # logged(scaled(f)) is a subset of @scaled @logged @scaled, in order: copied as it stands.
    assert isinstance(target, type)
    assert target.forward.__code__ is ScaledThenLogged.forward.__code__
    other_order = tools.shifted(by=1.5)(Tools.negated(_innermost(OfAnotherObject)))
    monkeypatch.setattr(OfAnotherObject, "forward", other_order)
    refusal = patched(OfAnotherObject)
    assert says(
        refusal.why("mlp"),
        "test_wrappers.Tools.shifted.<locals>.decorate.<locals>.wrapper, test_wrappers.Tools.negated.<locals>.wrapper: that",
    )


def _innermost(cls):
    return inspect.unwrap(cls.forward)


def test_a_decorator_taken_off_stays_off(monkeypatch):
    monkeypatch.setattr(Logged, "forward", Logged.forward.__wrapped__)
    reference, module = pair(Logged)
    swap([(module, patched(Logged))])
    assert_equal(reference, module)
    assert LOG == []


def test_a_chain_that_bites_its_tail_is_refused(monkeypatch):
    wrapper = logged(_innermost(Plain))
    wrapper.__wrapped__ = wrapper
    monkeypatch.setattr(Plain, "forward", wrapper)
    refusal = patched(Plain)
    assert refusal.why("mlp") == "its forward is wrapped in a circle"


def test_two_decorators_keep_their_order():
    """(x * 0.5 + n) * 3 + m is not (x * 3 + m) * 0.5 + n."""
    target = patched(ScaledThenLogged)
    factors = [value for name, value in counts(target.forward) if name == "factor"]
    assert factors == [3.0, 0.5]
    assert PATCH in vars(target)
