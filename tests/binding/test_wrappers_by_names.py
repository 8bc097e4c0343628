"""Decorators that look for parameters by name, as transformers' ``merge_with_config_defaults`` does."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch import nn

from patchkit.arch.spec import LanguageModel
from patchkit.binding.classes import patched_class
from patchkit.binding.patch import Refusal


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
