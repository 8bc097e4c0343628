"""What a wrapper does with the function in it, and what a decorator's expression names: each form, from text."""

from __future__ import annotations

import ast
import importlib
import itertools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from patchkit.binding import wrappers

HEAD = "import functools\n\n\ndef make(inner, other=None):\n"
numbers = itertools.count()


@pytest.fixture
def wrapper_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the wrapper that ``make`` returns, with this body, from a file."""
    monkeypatch.syspath_prepend(tmp_path)

    def build(body: str, head: str = HEAD, tail: str = "    return wrapper\n"):
        name = f"wrapper_module_{next(numbers)}"
        lines = "".join(f"        {line}\n" for line in body.split("\n"))
        (tmp_path / f"{name}.py").write_text(f"{head}    def wrapper(self, x):\n{lines}{tail}")
        importlib.invalidate_caches()
        return importlib.import_module(name).make(print)

    return build


ANOTHER = "gives its variable another value"
ELSE = "does something else with it than call it (line 6)"
BODIES = {
    # the body: why it might tell one function from another
    "return inner(self, x)": None,
    "return inner(self, inner(self, x))": None,
    "return [inner(self, one) for one in x]": None,
    "return (lambda: inner(self, x))()": None,
    "return inner(self, x), inner.__name__": None,
    "return inner(self, x), inner.__qualname__": None,
    "return inner(self, x), inner.__module__": None,
    "return inner(self, x), inner.__doc__": None,
    "return inner(self, x), inner.__code__": ELSE,
    "return inner(self, x), inner.__dict__": ELSE,
    "return inner(self, x), inner.calls": ELSE,
    "return inner.call(self, x)": ELSE,
    "return other, inner": ELSE,
    "return hash(inner)": ELSE,
    "return functools.partial(inner, self)(x)": ELSE,
    "return inner(self, x, inner)": ELSE,
    "inner.__doc__ = x": ELSE,
    "inner.__name__ += x": ELSE,
    "del inner.__doc__": ELSE,
    "inner.calls = x": ELSE,
    "return x[inner]": ELSE,
    "return inner is None or x": ELSE,
    "return inner(self, x), locals()": "calls `locals`",
    "return inner(self, x), vars()": "calls `vars`",
    "return inner(self, x), eval('inner')": "calls `eval`",
    "exec('pass')\nreturn inner(self, x)": "calls `exec`",
    "look = vars\nreturn inner(self, look)": "calls `vars`",
    "nonlocal inner\nreturn inner(self, x)": ANOTHER,
    "nonlocal other, inner\nreturn inner(self, x)": ANOTHER,
    "nonlocal other\nreturn inner(self, x)": None,
    "def f():\n    nonlocal inner\n    inner = x\nreturn inner(self, f)": ANOTHER,
    "global inner_calls\nreturn inner(self, x)": None,
    "return inner(self, other)": None,
}


@pytest.mark.parametrize("body", BODIES)
def test_what_a_wrapper_does_with_the_function_in_it(body: str, wrapper_of) -> None:
    assert wrappers._why_not_only_called(wrapper_of(body), "inner") == BODIES[body]


def test_what_ran_when_it_was_made_counts_for_nothing(wrapper_of) -> None:
    """Its decorators, and the defaults of its arguments."""
    head = f"{HEAD}    @functools.wraps(inner)\n"
    assert wrappers._why_not_only_called(wrapper_of("return inner(self, x)", head), "inner") is None
    tail = "    return lambda self, x, more=inner: inner(self, x)\n"
    assert wrappers._why_not_only_called(wrapper_of("return inner", tail=tail), "inner") is None
    tail = "    return lambda self, x: (x, inner)\n"
    assert "does something else with it" in wrappers._why_not_only_called(
        wrapper_of("return inner(x)", tail=tail), "inner"
    )


SOURCELESS = "has no source that says what runs"


@pytest.mark.parametrize("how", ["no file", "another text", "no Python", "two of them in one line"])
def test_a_wrapper_whose_source_says_nothing(how: str, wrapper_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does."""
    if how == "no file":
        scope: dict[str, object] = {}
        exec(compile(f"{HEAD}    return lambda self, x: inner(self, x)\n", "<nowhere>", "exec"), scope)
        wrapper = scope["make"](print)  # type: ignore[operator]
    elif how == "two of them in one line":
        wrapper = wrapper_of(
            "return inner(x)", tail="    return [lambda self, x: inner(self, x), lambda self, x: inner(self, x)][0]\n"
        )
    else:
        wrapper = wrapper_of("return inner(self, x)")
        text = (
            "x = (\n" if how == "no Python" else f"{HEAD}    def wrapper(self, x):\n        return inner(self, x, 1)\n"
        )
        monkeypatch.setattr(
            wrappers.definition_of.__globals__["linecache"], "getlines", lambda *_: text.splitlines(True)
        )
    assert wrappers._why_not_only_called(wrapper, "inner") == SOURCELESS


# ---- what a closure holds


def test_only_what_is_bound_is_in_a_closure() -> None:
    def outer(first: int) -> types.FunctionType:
        def inner() -> tuple[object, ...]:
            return first, later, second

        second = 2
        if first > 1:
            later = 3
        return inner  # type: ignore[return-value]

    assert dict(wrappers._contents(outer(1))) == {"first": 1, "second": 2}
    assert dict(wrappers._contents(outer(2))) == {"first": 2, "later": 3, "second": 2}
    assert list(wrappers._contents(lambda: None)) == []  # type: ignore[arg-type]


def test_where_a_wrapper_comes_from(wrapper_of) -> None:
    """Not by the names of what it wraps."""
    wrapper = wrapper_of("return inner(self, x)", f"{HEAD}    @functools.wraps(inner)\n")
    expected = "make.<locals>.wrapper" if sys.version_info >= (3, 11) else "wrapper"
    assert wrappers._name(wrapper) == f"{wrapper.__globals__['__name__']}.{expected}"
    nameless = types.FunctionType(wrapper.__code__, {}, closure=wrapper.__closure__)
    assert wrappers._name(nameless) == f"?.{expected}"


# ---- what a decorator's expression names


class Owner:
    """Hides a global of the same name."""

    own = "of the class"
    both = "of the class"

    @property
    def asked(self) -> str:
        raise AssertionError("nothing is called")


SCOPE = {"both": "of the module", "glob": "of the module", "len": "of the module", "module": types.ModuleType("module")}
SCOPE["module"].part = SimpleNamespace(deep="in the module")  # type: ignore[attr-defined]
SCOPE["owner"] = Owner()  # type: ignore[assignment]
NAMED = {
    "own": "of the class", "both": "of the class", "glob": "of the module", "len": "of the module", "max": max, "gone": None,
    "glob()": "of the module", "glob(1)(2)": "of the module", "module.part.deep": "in the module", "module.part().deep(1)": None,
    "module.part.gone": None, "module.gone.deep": None, "gone.deep": None, "owner.both": "of the class", "owner.asked": Owner.__dict__["asked"],
    "glob[0]": None, "(lambda f: f)": None, "module.part.deep(1)": "in the module", "owner.gone": None,
}  # fmt: skip


@pytest.mark.parametrize("expression", NAMED)
def test_what_a_decorator_names(expression: str) -> None:
    function = types.FunctionType((lambda: None).__code__, SCOPE)
    method = SimpleNamespace(owner=Owner, function=function)
    found = wrappers._found(ast.parse(expression, mode="eval").body, method)  # type: ignore[arg-type]
    assert found is NAMED[expression] or found == NAMED[expression]


# ---- what a decorator makes


def plain(function: object):
    def first() -> None:
        def inside() -> None:
            pass

    def second() -> None:
        pass

    return first, second


class Callable:
    static, of_class, bound = staticmethod(plain), classmethod(plain), plain

    def __call__(self, function: object):
        def third() -> None:
            pass

        return third


def decorated(function: object):
    def fourth() -> None:
        pass

    return fourth


decorated.__wrapped__ = plain  # type: ignore[attr-defined]
PLAIN = {"first", "inside", "second"}
MADE = {
    "a function": (plain, PLAIN),
    "a static method": (vars(Callable)["static"], PLAIN),
    "a class method": (vars(Callable)["of_class"], PLAIN),
    "a bound method": (Callable().bound, PLAIN),
    "an object": (Callable(), {"third"}),
    "a class": (Callable, {"third"}),
    "a decorated one": (decorated, {"fourth"} | PLAIN),
    "a context of torch": (torch.no_grad(), {"decorate_context"}),
    "a class of contexts": (torch.no_grad, {"decorate_context"}),
    "nothing": (None, set()),
    "a built-in": (len, set()),
}


@pytest.mark.parametrize("case", MADE)
def test_what_a_decorator_makes(case: str) -> None:
    decorator, expected = MADE[case]
    found: Iterator[types.CodeType] = wrappers._made_by(decorator)
    assert {code.co_name for code in found} >= expected
    if not expected:
        assert not list(wrappers._made_by(decorator))
    elif "torch" not in case and "contexts" not in case:
        assert {code.co_name for code in wrappers._made_by(decorator)} - {"<listcomp>"} == expected
