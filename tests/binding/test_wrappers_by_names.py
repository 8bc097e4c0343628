"""Decorators that look for parameters by name, as transformers' ``merge_with_config_defaults`` does."""

from __future__ import annotations

import functools
import inspect
import sys

import pytest
import torch
from torch import nn

from patchkit.arch.spec import LanguageModel
from patchkit.binding.classes import patched_class
from patchkit.binding.patch import Refusal
from patchkit.binding.wrappers import Wrapper, _why_tells_by_variables


class Output(dict):
    pass


def by_name(name):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(self, *args, **kwargs):
            found = function.__code__.co_varnames.index(name) if name in function.__code__.co_varnames else None
            return function(self, *args, **kwargs), found

        return wrapper

    return decorate


def by_a_name_of_its_own(function):
    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        return function(self, *args, **kwargs), "states" in function.__code__.co_varnames

    return wrapper


def by_code(function):
    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        return function(self, *args, **kwargs), function.__code__.co_nlocals

    return wrapper


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lm_head, self.size = nn.Linear(2, 3), 3


class ByName(Model):
    @by_name("labels")
    def forward(self, x, labels=None):
        logits = self.lm_head(x[:, 1:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.size)
        return Output(loss=loss, logits=logits)


class ByItsOwn(Model):
    @by_a_name_of_its_own
    def forward(self, x, labels=None):
        logits = self.lm_head(x[:, 1:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.size)
        return Output(loss=loss, logits=logits)


class ByCode(Model):
    @by_code
    def forward(self, x, labels=None):
        logits = self.lm_head(x[:, 1:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.size)
        return Output(loss=loss, logits=logits)


def patched(cls):
    return patched_class(cls, LanguageModel(cls.__name__), frozenset({"loss"}))


def test_positions_of_parameters_are_what_they_were():
    made = patched(ByName)
    assert not isinstance(made, Refusal), made
    model, x = ByName(), torch.ones(1, 2, 2)
    expected = model(x)
    model.__class__ = made
    assert "apply_loss" in inspect.getsource(made.forward)
    found = model(x)
    assert found[1] == expected[1] == 2
    assert torch.equal(found[0]["logits"], expected[0]["logits"])


@pytest.mark.parametrize(
    ("cls", "reason"), [(ByItsOwn, "looks at the names of its variables"), (ByCode, "does something else with it")]
)
def test_what_could_tell_the_two_apart_refuses(cls, reason):
    made = patched(cls)
    assert isinstance(made, Refusal)
    assert reason in made.why("loss")


def looks(function):
    def wrapper(*args):
        return "use_cache" in function.__code__.co_varnames and function(*args)

    return wrapper


def calls(function):
    def wrapper(*args):
        return function(*args)

    return wrapper


def of(source):
    """A function ``forward`` of the names of a source's one."""
    names = {}
    exec(source, names)
    return names["forward"]


OLD = "def forward(self, x, *, y=0):\n    a = x\n    b = y\n    return a, b"
# The new function, and whether names are what they were.
NEW = {
    "the same": (OLD, True),
    "one more variable at the end": (OLD.replace("return", "c = 0\n    return"), True),
    "one more among the variables": (OLD.replace("b = y", "c = b = y"), True),
    "one that the wrapper knows": (OLD.replace("b = y", "use_cache = b = y"), False),
    "other variables first": (OLD.replace("a = x\n    b = y", "b = y\n    a = x"), False),
    "one variable less": (OLD.replace("    a = x\n", "").replace("return a", "return x"), False),
    "one more parameter": (OLD.replace("x,", "x, c,"), False),
    "one more keyword": (OLD.replace("y=0", "c=0, y=0"), False),
    "one more keyword at the end": (OLD.replace("y=0", "y=0, c=0"), True),
}
WITHOUT_KEYWORDS = OLD.replace("*, y=0", "y=0")


@pytest.mark.parametrize("new", NEW)
def test_what_names_may_become(new):
    text, same = NEW[new]
    why = [_why_tells_by_variables([Wrapper(wrap(of(OLD)), None)], of(text), of(OLD)) for wrap in (looks, calls)]
    told = "looks.<locals>.wrapper" if sys.version_info >= (3, 11) else "wrapper"
    refused = f"{__name__}.{told}, which wraps it, looks at the names of its variables"
    assert why == [None if same else refused, None]


def test_a_parameter_after_all_others_is_a_variable_among_others():
    new = of(WITHOUT_KEYWORDS.replace("y=0", "y=0, c=0"))
    assert _why_tells_by_variables([Wrapper(looks(new), None)], new, of(WITHOUT_KEYWORDS)) is None
