"""What each call in a ``forward`` is given, form by form of the language: values, where they are from, and where it stands.

A call is written as ``name(argument)``, with ``@n`` for the n-th suite in which calls stand, ``=x`` for the variable
that it is given, and ``nested`` in a function within the method. Of an argument that is followed its parts are written;
of any other the names of the layers from which it is computed, in braces.
"""

from __future__ import annotations

import ast

import pytest
from class_texts import class_of

from patchkit.derivation.flow import Applied, Called, Clamped, Dropped, Half, Halves, Product, Value, calls_in


def words_of(value: Value | None) -> str:
    match value:
        case None:
            return "-"
        case Called():
            return value.name
        case Applied():
            return f"{value.function}[{words_of(value.argument)}]"
        case Dropped():
            return f"dropped by {value.function}[{words_of(value.argument)}]"
        case Clamped():
            return f"{words_of(value.argument)} within {'+-' if value.from_both_sides else ''}{value.limit}"
        case Product():
            return " * ".join(map(words_of, value.factors))
        case Halves():
            return f"halves of {words_of(value.whole)}"
        case Half():
            return f"half {value.index} of {words_of(value.halves.whole)}"
    written = value.written.id if isinstance(value.written, ast.Name) else ""
    return written or "{" + " ".join(sorted(value.origins)) + "}"


def told(body: str) -> str:
    function = ast.parse(class_of(body, init=False)).body[0].body[0]  # type: ignore[attr-defined]
    suites: list[int] = []
    words = []
    for call in calls_in(function):
        suites += [] if call.suite in suites else [call.suite]
        variable = f"={call.variable}" if call.variable else ""
        nested = " nested" if call.nested else ""
        words.append(f"{call.name}({words_of(call.argument)}){variable}@{suites.index(call.suite)}{nested}")
    return ", ".join(words)


STATEMENTS = {
    "one after the other": ("h = self.a(x)\nreturn self.b(h)", "a(x)=x@0, b(a)=h@0"),
    "two names": ("g = h = self.a(x)\nself.b(g)\nself.c(h)", "a(x)=x@0, b(a)=g@0, c(a)=h@0"),
    "with an annotation": ("h: T = self.a(x)\nself.b(h)", "a(x)=x@0, b(a)=h@0"),
    "an annotation alone": ("h = self.a(x)\nh: T\nself.b(h)", "a(x)=x@0, b(a)=h@0"),
    "unpacked": ("g, h = self.a(x), self.b(x)\nself.c(g)\nself.d(h)", "a(x)=x@0, b(x)=x@0, c(a)=g@0, d(b)=h@0"),
    "unpacked into a list": ("[g, h] = [self.a(x), y]\nself.c(g)\nself.d(h)", "a(x)=x@0, c(a)=g@0, d(y)=h@0"),
    "unpacked within": ("g, (h, i) = y, (self.a(x), x)\nself.c(h)", "a(x)=x@0, c(a)=h@0"),
    "unpacked from one": ("g, h = self.a(x)\nself.c(g)\nself.d(h)", "a(x)=x@0, c({a})=g@0, d({a})=h@0"),
    "another number": ("g, h = self.a(x), y, x\nself.c(h)", "a(x)=x@0, c({a})=h@0"),
    "a starred name": ("g, *h = self.a(x), y\nself.c(h)", "a(x)=x@0, c({})=h@0"),
    "a starred name of one": ("g, *h = self.a(x)\nself.c(h)", "a(x)=x@0, c({a})=h@0"),
    "added to": ("h = self.a(x)\nh += self.b(x)\nself.c(h)", "a(x)=x@0, b(x)=x@0, c({a b})=h@0"),
    "an element that is added to": ("h = y\nh[0] += self.b(x)\nself.c(h)", "b(x)=x@0, c({b})=h@0"),
    "an element that a call names": ("h = y\nh[self.a(x)] += self.b(x)\nself.c(h)", "b(x)=x@0, a(x)=x@0, c({b})=h@0"),
    "an attribute of self that is added to": ("self.h += self.a(x)\nself.c(x)", "a(x)=x@0, c(x)=x@0"),
    "an element": ("h = self.a(x)\nh[0] = self.b(x)\nself.c(h)", "a(x)=x@0, b(x)=x@0, c({a b})=h@0"),
    "an element of something new": ("new.h[0] = self.b(x)\nself.c(new)", "b(x)=x@0, c({b})=new@0"),
    "an element that is no call": ("h = self.a(x)\nh[0] = y\nself.c(h)", "a(x)=x@0, c(a)=h@0"),
    "an attribute of self": ("self.h = self.a(x)\nself.c(x)", "a(x)=x@0, c(x)=x@0"),
    "appended": ("h = []\nh.append(self.a(x))\nself.c(h)", "a(x)=x@0, c({a})=h@0"),
    "changed in place": ("h = self.a(x)\nh.add_(self.b(x))\nself.c(h)", "a(x)=x@0, b(x)=x@0, c({a b})=h@0"),
    "changed in place alone": ("h = self.a(x)\nh.mul_(2)\nself.c(h)", "a(x)=x@0, c({a})=h@0"),
    "given to a function": ("h = y\nf(h, self.a(x))\nself.c(h)", "a(x)=x@0, c(y)=h@0"),
    "an expression of no call": ("h = self.a(x)\nh\nself.c(h)", "a(x)=x@0, c(a)=h@0"),
    "nothing of self": ("self.a(x)\nother.b(x)\nx.c(x)", "a(x)=x@0"),
    "deeper than an attribute": ("self.a.b(x)\nself.c(x)", "c(x)=x@0"),
}

COMPOUNDS = {
    "branches": (
        "h = self.a(x)\nif flag:\n    h = self.b(h)\nelse:\n    h = self.c(h)\nself.d(h)",
        "a(x)=x@0, b(a)=h@1, c(a)=h@2, d({a b c})=h@0",
    ),
    "one branch": ("h = self.a(x)\nif flag:\n    h = self.b(h)\nself.d(h)", "a(x)=x@0, b(a)=h@1, d({a b})=h@0"),
    "a branch that binds nothing": (
        "h = self.a(x)\nif flag:\n    self.b(h)\nself.d(h)",
        "a(x)=x@0, b(a)=h@1, d(a)=h@0",
    ),
    "a branch that changes an element": (
        "h = self.a(x)\nif flag:\n    h[0] = self.b(x)\nself.d(h)",
        "a(x)=x@0, b(x)=x@1, d({a b})=h@0",
    ),
    "a branch that casts": ("h = self.a(x)\nif flag:\n    h = h.to(y)\nself.d(h)", "a(x)=x@0, d(a)=h@0"),
    "a branch that casts and does more": (
        "h = self.a(x)\nif flag:\n    h = h.to(y)\n    y = x\nself.d(h)",
        "a(x)=x@0, d({a})=h@0",
    ),
    "a branch that casts, and another": (
        "h = self.a(x)\nif flag:\n    h = h.to(y)\nelse:\n    h = self.b(h)\nself.d(h)",
        "a(x)=x@0, b(a)=h@1, d({a b})=h@0",
    ),
    "a branch that casts something else": (
        "h = self.a(x)\nif flag:\n    h = x.to(y)\nself.d(h)",
        "a(x)=x@0, d({a})=h@0",
    ),
    "a branch that casts into two": (
        "h = self.a(x)\nif flag:\n    g = h = h.to(y)\nself.d(h)",
        "a(x)=x@0, d({a})=h@0",
    ),
    "a branch that converts": ("h = self.a(x)\nif flag:\n    h = h.half()\nself.d(h)", "a(x)=x@0, d({a})=h@0"),
    "the condition of a cast": (
        "h = self.a(x)\nif self.b(h):\n    h = h.to(y)\nself.d(h)",
        "a(x)=x@0, b(a)=h@0, d(a)=h@0",
    ),
    "a condition": ("if self.a(x):\n    self.b(x)\nself.c(x)", "a(x)=x@0, b(x)=x@1, c(x)=x@0"),
    "a loop": (
        "h = self.a(x)\nfor z in y:\n    h = self.b(h)\nself.d(h)",
        "a(x)=x@0, b({a})=h@1, d({a b})=h@0",
    ),
    "a loop with an end": (
        "for z in self.a(x):\n    self.b(z)\nelse:\n    self.c(x)\nself.d(z)",
        "a(x)=x@0, b({})=z@1, c(x)=x@2, d({})=z@0",
    ),
    "a loop that binds nothing": (
        "h = self.a(x)\nwhile flag:\n    self.b(h)\nself.d(h)",
        "a(x)=x@0, b(a)=h@1, d(a)=h@0",
    ),
    "the condition of a loop": ("while self.a(x):\n    self.b(x)", "a(x)=x@0, b(x)=x@1"),
    "with": ("with self.a(x) as h:\n    self.b(h)\nself.c(x)", "a(x)=x@0, b({a})=h@1, c(x)=x@0"),
    "with several": (
        "with self.a(x), self.b(x) as (g, h):\n    self.c(h)",
        "a(x)=x@0, b(x)=x@0, c({b})=h@1",
    ),
    "try": (
        "h = self.a(x)\ntry:\n    h = self.b(h)\nexcept E:\n    h = self.c(h)\nelse:\n    self.d(x)\nfinally:\n    self.e(x)\nself.f(h)",
        "a(x)=x@0, b(a)=h@1, c(a)=h@2, d(x)=x@3, e(x)=x@4, f({a b c})=h@0",
    ),
    "match": (
        "match self.a(x):\n    case 1:\n        h = self.b(x)\n    case _:\n        h = self.c(x)\nself.d(h)",
        "a(x)=x@0, b(x)=x@1, c(x)=x@2, d({b c})=h@0",
    ),
    "a function": (
        "h = self.a(x)\ndef f():\n    h = self.b(x)\nself.c(h)",
        "a(x)=x@0, b(x)=x@1 nested, c(a)=h@0",
    ),
    "a function in a function": (
        "def f():\n    if flag:\n        def g():\n            self.a(x)\n        self.b(x)\n    self.c(x)\nself.d(x)",
        "a(x)=x@0 nested, b(x)=x@1 nested, c(x)=x@2 nested, d(x)=x@3",
    ),
    "a class": ("class C:\n    h = self.a(x)\nself.b(x)", "a(x)=x@0 nested, b(x)=x@1"),
    "return": ("h = self.a(x)\nreturn self.b(h), self.c(x)", "a(x)=x@0, b(a)=h@0, c(x)=x@0"),
    "assert": ("assert self.a(x), self.b(x)\nself.c(x)", "a(x)=x@0, b(x)=x@0, c(x)=x@0"),
}

EXPRESSIONS = {
    "a call in a call": ("self.b(self.a(x))", "a(x)=x@0, b(a)@0"),
    "a function": ("self.b(F.silu(self.a(x)))", "a(x)=x@0, b(F.silu[a])@0"),
    "a function by one name": ("self.b(silu(self.a(x)))", "a(x)=x@0, b(silu[a])@0"),
    "a function of two": ("self.b(f(self.a(x), y))", "a(x)=x@0, b({a})@0"),
    "a function with an option": ("self.b(f(self.a(x), dim=1))", "a(x)=x@0, b({a})@0"),
    "a function of an option": ("self.b(f(y, out=self.a(x)))", "a(x)=x@0, b({a})@0"),
    "a function of a starred": ("self.b(f(*self.a(x)))", "a(x)=x@0, b({a})@0"),
    "a local function": ("f = y\nself.b(f(self.a(x)))", "a(x)=x@0, b({a})@0"),
    "a parameter's method": ("self.b(y.f(self.a(x)))", "a(x)=x@0, b({a})@0"),
    "what a call gives is called": ("self.b(self.a(x)(y))", "a(x)=x@0, b({a})@0"),
    "a method of what a call gives": ("self.b(self.a(x).view(2))", "a(x)=x@0, b({a})@0"),
    "dropout": ("self.b(F.dropout(self.a(x), 0.1))", "a(x)=x@0, b(dropped by F.dropout[a])@0"),
    "dropout of a starred": ("self.b(F.dropout(*self.a(x)))", "a(x)=x@0, b({a})@0"),
    "dropout of nothing": ("self.b(F.dropout(input=self.a(x)))", "a(x)=x@0, b({a})@0"),
    "a local dropout": ("self.b(y.dropout(self.a(x)))", "a(x)=x@0, b({a})@0"),
    "a product": ("self.c(self.a(x) * self.b(x))", "a(x)=x@0, b(x)=x@0, c(a * b)@0"),
    "a sum": ("self.c(self.a(x) + self.b(x))", "a(x)=x@0, b(x)=x@0, c({a b})@0"),
    "a negative": ("self.c(-self.a(x))", "a(x)=x@0, c({a})@0"),
    "a comparison": ("self.c(y < self.a(x))", "a(x)=x@0, c({a})@0"),
    "either": ("h = self.a(x) if flag else self.b(x)\nself.c(h)", "a(x)=x@0, b(x)=x@1, c({a b})=h@2"),
    "the condition of either": ("h = x if self.a(x) else y\nself.c(h)\nself.d(x)", "a(x)=x@0, c({})=h@0, d(x)=x@0"),
    "and": ("h = self.a(x) and self.b(x)\nself.c(h)", "a(x)=x@0, b(x)=x@1, c({a b})=h@2"),
    "after a condition": ("self.a(x) if flag else y\nself.c(x)\nself.d(x)", "a(x)=x@0, c(x)=x@1, d(x)=x@1"),
    "a name on the way": ("self.b(h := self.a(x))\nself.c(h)", "a(x)=x@0, b(a)@0, c(a)=h@0"),
    "a lambda": ("f = lambda: self.a(x)\nself.b(f)\nself.c(x)", "a(x)=x@0 nested, b({})=f@1, c(x)=x@1"),
    "a lambda binds nothing here": ("h = x\nf = lambda: (h := self.a(x))\nself.b(h)", "a(x)=x@0 nested, b(x)=h@1"),
    "each of a list": ("h = [self.a(z) for z in y]\nself.b(h)\nself.c(z)", "a({})=z@0, b({a})=h@1, c(z)=z@1"),
    "each of what a call gives": (
        "h = [z for z in self.a(x) if self.b(z)]\nself.c(h)",
        "a(x)=x@0, b({})=z@1, c({})=h@2",
    ),
    "each, by a key": ("h = {self.a(x): self.b(x) for z in y}\nself.c(h)", "a(x)=x@0, b(x)=x@1, c({a b})=h@2"),
    "a set of each": ("self.c({self.a(x) for z in y})", "a(x)=x@0, c({a})@1"),
    "a generator": ("self.c(sum(self.a(x) for z in y))", "a(x)=x@0, c(sum[{a}])@1"),
    "an index": ("h = self.a(x)\nself.b(h[0])", "a(x)=x@0, b({a})@0"),
    "an index that is called": ("h = y[self.a(x)]\nself.b(h)", "a(x)=x@0, b({})=h@0"),
    "in a slice": ("self.b(f(y[self.a(x) :], 1))", "a(x)=x@0, b({})@0"),
    "in a text": ("self.b(f'{self.a(x)}')", "a(x)=x@0, b({a})@0"),
    "a dictionary": ("h = {1: self.a(x)}\nself.b(h)", "a(x)=x@0, b({a})=h@0"),
    "two arguments": ("self.b(self.a(x), y)", "a(x)=x@0, b(-)@0"),
    "an option": ("self.b(x, y=self.a(x))", "a(x)=x@0, b(-)@0"),
    "a starred argument": ("self.b(*x)", "b(-)@0"),
    "no argument": ("self.b()", "b(-)@0"),
}

HALVES = {
    "unpacked": ("g, h = self.a(x).chunk(2, -1)\nself.b(g)\nself.c(h)", "half 0 of a", "half 1 of a"),
    "by name": ("g, h = self.a(x).chunk(2, dim=-1)\nself.b(g)\nself.c(h)", "half 0 of a", "half 1 of a"),
    "by a function": ("g, h = torch.chunk(self.a(x), 2, -1)\nself.b(g)\nself.c(h)", "half 0 of a", "half 1 of a"),
    "by an index": ("h = self.a(x).chunk(2, -1)\nself.b(h[1])\nself.c(h[0])", "half 1 of a", "half 0 of a"),
    "whole": ("h = self.a(x).chunk(2, -1)\nself.b(h)\nself.c(h[2])", "halves of a", "{a}"),
    "from the end": ("h = self.a(x).chunk(2, -1)\nself.b(h[-1])\nself.c(h[:1])", "{a}", "{a}"),
    "by a truth value": ("h = self.a(x).chunk(2, -1)\nself.b(h[False])\nself.c(h[True])", "{a}", "{a}"),
    "by a text": ("h = self.a(x).chunk('2', -1)\nself.b(h[0])\nself.c(h[1])", "{a}", "{a}"),
    "a number with a point": ("g, h = self.a(x).chunk(2.0, -1)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
    "into three": ("g, h, i = self.a(x).chunk(2, -1)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
    "another number": ("g, h = self.a(x).chunk(3, -1)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
    "another dimension": ("g, h = self.a(x).chunk(2, 1)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
    "no dimension": ("g, h = self.a(x).chunk(2)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
    "another function": ("g, h = self.a(x).split(2, -1)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
    "a name alone": ("g, h = chunk(self.a(x), 2, -1)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
    "of nothing": ("g, h = torch.chunk(x=self.a(x), n=2, dim=-1)\nself.b(g)\nself.c(h)", "{a}", "{a}"),
}

CLAMPS = {
    "from above": ("self.a(x).clamp(max=self.l)", "a within l"),
    "from both sides": ("self.a(x).clamp(min=-self.l, max=self.l)", "a within +-l"),
    "no lower end": ("self.a(x).clamp(min=None, max=self.l)", "a within l"),
    "another lower end": ("self.a(x).clamp(min=0, max=self.l)", "{a}"),
    "the lower end of another": ("self.a(x).clamp(min=-self.m, max=self.l)", "{a}"),
    "a positive lower end": ("self.a(x).clamp(min=self.l, max=self.l)", "{a}"),
    "inverted": ("self.a(x).clamp(min=~self.l, max=self.l)", "{a}"),
    "from below": ("self.a(x).clamp(min=self.l)", "{a}"),
    "a number": ("self.a(x).clamp(max=7)", "{a}"),
    "a limit further down": ("self.a(x).clamp(max=self.config.l)", "{a}"),
    "another's limit": ("self.a(x).clamp(max=y.l)", "{a}"),
    "another option": ("self.a(x).clamp(max=self.l, out=y)", "{a}"),
    "in order": ("self.a(x).clamp(None, max=self.l)", "{a}"),
    "another function": ("self.a(x).clip(max=self.l)", "{a}"),
    "a global one": ("torch.clamp(self.a(x), max=self.l)", "{a}"),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements(name: str) -> None:
    body, calls = STATEMENTS[name]
    assert told(body) == calls


@pytest.mark.parametrize("name", COMPOUNDS)
def test_compound_statements(name: str) -> None:
    body, calls = COMPOUNDS[name]
    assert told(body) == calls


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions(name: str) -> None:
    body, calls = EXPRESSIONS[name]
    assert told(body) == calls


@pytest.mark.parametrize("name", HALVES)
def test_halves(name: str) -> None:
    body, first, second = HALVES[name]
    found = told(body)
    assert f"b({first})" in found
    assert f"c({second})" in found


@pytest.mark.parametrize("name", CLAMPS)
def test_clamps(name: str) -> None:
    code, given = CLAMPS[name]
    assert told(f"self.b({code})") == f"a(x)=x@0, b({given})@0"
