"""What counts of the code outside of a class: each kind of member, each place of it, each kind of what is passed over."""

from __future__ import annotations

import functools
import math  # noqa: F401, looked up by name
import types

import pytest
import torch
import torch.nn.functional as F  # noqa: F401, looked up by name
from torch import nn

from patchkit.errors import RewriteError
from patchkit.trust.key import hash_of_class
from patchkit.trust.outside import outside


def doubled(x):
    return x * 2


class Descriptor:
    def __init__(self, function):
        self.function = function

    def __get__(self, instance, owner):
        return 2


MEMBERS = {
    # what stands under a name that forward uses: whether it counts in a base, and in an heir
    "a value": (2, False, False),
    "a method": (lambda self: 2, False, True),
    "a static method": (staticmethod(lambda: 2), False, True),
    "a class method": (classmethod(lambda cls: 2), False, True),
    "a property": (property(lambda self: 2), True, True),
    "a cached property": (functools.cached_property(lambda self: 2), True, True),
    "a descriptor": (Descriptor(None), True, True),
}


def classes(name, value):
    """A class with a forward, where this stands in its base, or in its heir."""

    def forward(self, x):
        return self.gate * x

    def of(member):
        if isinstance(member, functools.cached_property):  # it is of one class and one name
            return functools.cached_property(member.func)
        return member

    base = type("Base", (nn.Module,), {name: of(value)})
    owner = type("Owner", (base,), {"forward": forward})
    plain = type("Plain", (nn.Module,), {"forward": forward})
    heir = type("Heir", (plain,), {name: of(value)})
    return (owner, owner), (heir, plain)


def told(cls, owner, names=(), module=None):
    return outside(cls, owner, names, ["gate"], owner.forward, module)


@pytest.mark.parametrize("name", ["gate", "unused"])
@pytest.mark.parametrize("kind", MEMBERS)
def test_each_kind_of_member(kind, name):
    """In a base, what answers for an attribute by itself; in an heir everything, of what forward names."""
    value, in_base, in_heir = MEMBERS[kind]
    (owner, its_owner), (heir, plain) = classes(name, value)
    assert bool(told(owner, its_owner)) is (in_base and name == "gate")
    assert bool(told(heir, plain)) is (in_heir and name == "gate")


@pytest.mark.parametrize("name", ["__getattr__", "__getattribute__", "__setattr__"])
def test_what_answers_for_every_name(name):
    counts = name != "__setattr__"
    for cls, owner in classes(name, lambda self, key: 2):
        assert bool(told(cls, owner)) is counts


def test_nothing_of_torch_counts():
    (owner, _), _ = classes("unused", 2)
    assert told(owner, owner) == ""
    assert vars(nn.Module)["__getattr__"] is not None


here = types.ModuleType("here_of_mine")
here.doubled = doubled


class Helps:
    @staticmethod
    def static(x):
        return x * 2

    @classmethod
    def of_class(cls, x):
        return x * 2

    def method(self, x):
        return x * 2


made = functools.partial(doubled)
packet = torch.ops.aten.relu

PASSED_OVER = {
    # what projections were moved past: whether it counts, or why nothing is known
    "doubled()": True,
    "doubled": True,
    "here.doubled()": True,
    "Helps()": True,
    "Helps.static()": True,
    "Helps.of_class()": True,
    "Helps.method()": True,
    "len()": False,
    "range()": False,
    "torch.relu()": False,
    "packet()": False,
    "F.silu()": False,
    "math.sqrt()": False,
    "made()": "is a functools.partial, which cannot be read",
    "nobody()": "is not defined",
    "here.nobody()": "is not defined",
    "Helps.nobody()": "is not defined",
    ".update()": "what it does is not known",
    "self.nobody()": "only an instance knows it",
    "self.nobody": False,
    "self.forward()": True,
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_each_kind_of_what_is_passed_over(name):
    (owner, _), _ = classes("unused", 2)
    expected = PASSED_OVER[name]
    function = types.FunctionType(owner.forward.__code__, globals())
    if isinstance(expected, str):
        with pytest.raises(RewriteError, match=expected):
            outside(owner, owner, [name], [], function, None)
    else:
        assert bool(outside(owner, owner, [name], [], function, None)) is expected


class Norm(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize(("part", "expected"), [
    (Norm(), True), (nn.Sequential(nn.Identity(), Norm()), True), (nn.LayerNorm(2), False), (doubled, True), (torch.relu, False),
    (made, "is a functools.partial"), (None, "is a builtins.NoneType"),
])  # fmt: skip
def test_what_an_instance_has_under_a_name(part, expected):
    """Called it counts; only read it is a value."""
    (owner, _), _ = classes("unused", 2)
    module = owner()
    if isinstance(part, nn.Module):
        module.norm = part
    else:
        module.__dict__["norm"] = part
    assert outside(owner, owner, ["self.norm"], [], owner.forward, module) == ""
    if isinstance(expected, str):
        with pytest.raises(RewriteError, match=expected):
            outside(owner, owner, ["self.norm()"], [], owner.forward, module)
    else:
        assert bool(outside(owner, owner, ["self.norm()"], [], owner.forward, module)) is expected
    with pytest.raises(RewriteError, match=r"`self\.other\(\)` is called between the projections, and is not defined"):
        outside(owner, owner, ["self.other()"], [], owner.forward, module)


def test_the_order_of_names_says_nothing():
    (owner, _), _ = classes("unused", 2)
    function = types.FunctionType(owner.forward.__code__, globals())
    names = ["doubled()", "Helps()", "here.doubled()"]
    found = {outside(owner, owner, order, [], function, None) for order in (names, names[::-1], names * 2)}
    assert len(found) == 1
    assert outside(owner, owner, names[:1], [], function, None) not in found


SOURCE = "class A:\n    class B:\n        x = 1\n    def f(self): ...\n\nclass C:\n    x = 1\n\nclass C:\n    x = 2\n"


@pytest.mark.parametrize(("name", "why"), [
    ("A", None), ("A.B", None), ("C", None), ("D", "class D is not in the source"), ("A.C", "is not in the source"),
    ("A.f", "is not in the source"),
])  # fmt: skip
def test_which_class_is_hashed(name, why):
    if why:
        with pytest.raises(RewriteError, match=why):
            hash_of_class(SOURCE, name)
    else:
        assert len(hash_of_class(SOURCE, name)) == 64
        assert hash_of_class(SOURCE, "C") == hash_of_class(SOURCE.replace("x = 1\n\n", "x = 5\n\n"), "C"), (
            "the last one"
        )


@pytest.mark.parametrize("error", [SyntaxError, ValueError, RecursionError, MemoryError, UnicodeDecodeError])
def test_each_way_in_which_a_source_does_not_parse(error, monkeypatch):
    """Which of them it is depends on the version of Python."""

    def fail(source, filename):
        raise error("utf-8", b"x", 0, 1, "no") if error is UnicodeDecodeError else error("no")

    monkeypatch.setattr("patchkit.upstream.classes.parsed", fail)
    with pytest.raises(RewriteError, match="the source does not parse: "):
        hash_of_class(f"# {error.__name__}", "A")
