"""What may stand in a place of a formula: a library's own function, and everything else that somebody can put there."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchkit.adapters import formula
from patchkit.adapters.formula import Formula, defines_any, name_of, nothing_changed


def wrapper(function: Callable) -> Callable:
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


class Base(nn.Module):
    def forward(self, x):
        return x

    @staticmethod
    def static(x):
        return x

    @classmethod
    def of_class(cls, x):
        return x

    @property
    def answer(self):
        return 1

    @wrapper
    def wrapped(self, x):
        return x


class Heir(Base):
    pass


class Called:
    def __call__(self, *args):
        return 2


def other(self, x):
    return 2 * x


def made(qualname: str, module: str = __name__, function: Callable = other) -> Callable:
    """A function that says that it is another one."""
    new = types.FunctionType(function.__code__, function.__globals__, "forward")
    new.__qualname__, new.__module__ = qualname, module
    return new


@pytest.mark.parametrize("owner", [Base, Heir])
@pytest.mark.parametrize("name", ["forward", "static", "of_class", "answer", "wrapped"])
def test_what_a_class_defines_is_its_own(owner, name):
    assert Formula({owner: name}).replaced() is None
    assert Formula({owner: f"forward {name}"}).replaced() is None


@pytest.mark.parametrize("name", ["linear", "dropout", "embedding", "silu"])
def test_what_torch_defines_is_its_own(name):
    assert Formula({F: name}).replaced() is None
    assert Formula({torch: "addmm"}).replaced() is None


OF_TORCH = wrapper(nn.Linear.forward)
PUT = {
    # what stands in the place of Base.forward now, and how it is called
    "another function": (other, f"replaced by {__name__}.other"),
    "a lambda": (lambda self, x: x, f"replaced by {__name__}.<lambda>"),
    "an object that can be called": (Called(), f"replaced by {__name__}.Called"),
    "a class": (Called, f"replaced by {__name__}.Called"),
    "a partial": (functools.partial(other, None), f"replaced by {__name__}.other"),
    "a static function": (staticmethod(other), f"replaced by {__name__}.other"),
    "a property": (property(lambda self: 2), f"replaced by {__name__}.<lambda>"),
    "a number": (3, "set to a int"),
    "nothing": (None, "set to a NoneType"),
    "a builtin": (len, "replaced by builtins.len"),
    "its own, wrapped by somebody": (OF_TORCH, "replaced by torch.nn.modules.linear.Linear.forward"),
    "its name, of another module": (made("Base.forward", "torch.nn"), "replaced by torch.nn.Base.forward"),
    "its name, of another class": (made("Sibling.forward"), f"replaced by {__name__}.Sibling.forward"),
    "its name, from another file": (
        made("Base.forward", __name__, nn.Linear.forward), f"replaced by {__name__}.Base.forward",
    ),
}  # fmt: skip


@pytest.mark.parametrize("owner", [Base, Heir])
@pytest.mark.parametrize("case", PUT)
def test_what_somebody_put_there(case, owner, monkeypatch):
    """In the class itself, or below it; seen when it is looked at first, and later; and it may be taken back."""
    value, said = PUT[case]
    before, found = Formula({owner: "forward"}), f"{__name__}.{owner.__name__}.forward was {said}"
    assert before.replaced() is None
    with monkeypatch.context() as patch:
        patch.setattr(owner, "forward", value, raising=False)
        assert before.replaced() == Formula({owner: "forward"}).replaced() == found
        assert before.replaced() == found
        assert not before.intact()
    assert before.replaced() is None
    assert before.intact()


def test_a_wrapper_of_the_same_file_is_a_decorator(monkeypatch):
    monkeypatch.setattr(Base, "forward", wrapper(Base.forward))
    assert Formula({Base: "forward"}).replaced() is None


@pytest.mark.parametrize(
    ("name", "value"), [("linear", other), ("linear", torch.relu), ("linear", len), ("dropout", 3)]
)
def test_what_somebody_put_into_a_module(name, value, monkeypatch):
    monkeypatch.setattr(F, name, value)
    assert Formula({F: name}).replaced().startswith(f"torch.nn.functional.{name} was ")


def test_what_is_gone(monkeypatch):
    """Once it was there; what a release never had takes no part."""
    found = Formula({Base: "forward never_there"})
    assert found.replaced() is None
    monkeypatch.delattr(Base, "answer")
    assert Formula({Base: "answer"}).replaced() is None
    monkeypatch.delattr(Base, "static")
    later = Formula({Heir: "wrapped"})
    assert later.replaced() is None
    monkeypatch.delattr(Base, "wrapped")
    assert later.replaced() == f"{__name__}.Heir.wrapped was deleted"
    assert found.replaced() is None


@pytest.mark.parametrize("owner", [Base, Heir, nn.Module])
def test_what_must_not_be_there(owner, monkeypatch):
    """In a class or a base of it: the instances have it, and it would be found first or instead."""
    found = Formula({}, {Heir: "magnitude"})
    assert found.replaced() is None
    monkeypatch.setattr(owner, "magnitude", None, raising=False)
    path = f"{owner.__module__}.{owner.__name__}.magnitude"
    assert found.replaced() == Formula({}, {Heir: "magnitude"}).replaced() == f"{path} was set to a NoneType"


@pytest.mark.parametrize("name", ["__call__", "_call_impl", "__getattr__", "__getattribute__"])
@pytest.mark.parametrize("owner", [Base, Heir])
def test_how_a_module_is_called_and_looked_into(owner, name, monkeypatch):
    found = Formula({Heir: "forward"})
    assert found.replaced() is None
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, other, raising=False)
        assert found.replaced() == f"{__name__}.{owner.__name__}.{name} was replaced by {__name__}.other"
    assert found.replaced() is None


def test_a_compiled_call_of_the_class_is_none_of_its_own(monkeypatch):
    assert nn.Module._compiled_call_impl is None
    monkeypatch.setattr(nn.Module, "_compiled_call_impl", other)
    assert "_compiled_call_impl" in Formula({Base: "forward"}).replaced()


def test_two_formulas_are_one():
    both = Formula({Base: "forward"}, {Base: "gate"}) | Formula({Heir: "static"}, {Heir: "scale"})
    assert both.replaced() is None
    for owner, name in ((Base, "forward"), (Heir, "static"), (Base, "gate"), (Heir, "scale")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, other, raising=False)
            assert both.replaced() == f"{__name__}.{owner.__name__}.{name} was replaced by {__name__}.other"
        assert both.replaced() is None


# ---- what else is asked of classes


@pytest.mark.parametrize(
    ("cls", "names", "below", "expected"),
    [
        (Heir, ["forward"], Base, False), (Heir, ["forward"], nn.Module, True), (Base, ["forward"], Base, False),
        (Base, ["other", "static"], nn.Module, True), (Base, [], nn.Module, False), (Heir, ["gate"], nn.Module, False),
    ],
)  # fmt: skip
def test_what_a_class_has_of_its_own(cls, names, below, expected):
    assert defines_any(cls, names, below=below) is expected


@pytest.mark.parametrize("owner", [Base, Heir, nn.Module])
@pytest.mark.parametrize("name", ["forward", "another"])
def test_whether_nothing_changed(owner, name, monkeypatch):
    unchanged = nothing_changed(Heir, Base)
    assert unchanged()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, other, raising=False)
        # What stands below another forward is not run by anybody.
        assert unchanged() == (owner is nn.Module and name == "forward")
    assert unchanged()


NAMES = {
    "a function": (other, f"{__name__}.other"),
    "a method": (Base().forward, f"{__name__}.Base.forward"),
    "a method of the class": (Base.of_class, f"{__name__}.Base.of_class"),
    "a partial of a partial": (functools.partial(functools.partial(other, 1), 2), f"{__name__}.other"),
    "a partial of a method": (functools.partial(Base().forward), f"{__name__}.Base.forward"),
    "an object": (Called(), f"{__name__}.Called"),
    "a class": (Base, f"{__name__}.Base"),
    "a builtin": (len, "builtins.len"),
    "one of torch": (torch.relu, "builtin_function_or_method.relu"),
}


@pytest.mark.parametrize("case", NAMES)
def test_each_name(case):
    thing, expected = NAMES[case]
    if case == "one of torch":
        expected = f"{torch.relu.__module__ or type(torch.relu).__module__}.{torch.relu.__qualname__}"
    assert name_of(thing) == expected


def test_a_comparison_of_nothing_holds():
    assert formula._comparison([], [])()
