"""Every line of a function that is read counts, what its class's own text says does not, and text is read once for each."""

from __future__ import annotations

import importlib
import linecache
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from patchkit.trust.outside import outside


class Forward(nn.Module):
    def forward(self, x):
        return self.gate * x


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Imports a text as a module, always of the same name."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(text: str) -> ModuleType:
        sys.modules.pop("helpers_outside", None)
        (tmp_path / "helpers_outside.py").write_text(text)
        linecache.clearcache()
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            return importlib.import_module("helpers_outside")
        finally:
            sys.dont_write_bytecode = before

    yield load
    sys.modules.pop("helpers_outside", None)


def key(module: ModuleType, name: str = "rescale()") -> str:
    function = Forward.forward
    namespace = {**function.__globals__, **vars(module)}
    copied = type(function)(function.__code__, namespace)
    return outside(Forward, Forward, [name], [], copied, None)


PLAIN = "def other(x):\n    return x\n\n\ndef rescale(x, by=1.0):\n    y = x * by\n    return y\n\n\ndef last(x):\n    return x\n"
SAME = {
    "itself": PLAIN,
    "further down": f"import math\n\n\n{PLAIN}",
    "another comment": PLAIN.replace("    y = x * by\n", "    # scaled\n    y = x * by  # by one\n"),
    "what stands before": PLAIN.replace("def other(x):\n    return x", "def other(x):\n    return x + 1"),
    "what stands behind": PLAIN.replace("def last(x):\n    return x", "def last(x):\n    return x + 1"),
}
ANOTHER = {
    "its first line": PLAIN.replace("by=1.0", "by=2.0"),
    "its name for an argument": PLAIN.replace("rescale(x", "rescale(x, *more"),
    "a line in between": PLAIN.replace("x * by", "x + by"),
    "its last line": PLAIN.replace("return y", "return -y"),
    "a decorator": PLAIN.replace("def rescale", "def same(function):\n    return function\n\n\n@same\ndef rescale"),
    "what it calls": PLAIN.replace("y = x * by", "y = other(x) * by"),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_function(case: str, loaded) -> None:
    assert key(loaded(SAME[case])) == key(loaded(PLAIN)) != ""


@pytest.mark.parametrize("case", ANOTHER)
def test_another_function(case: str, loaded) -> None:
    found = key(loaded(ANOTHER[case]))
    assert found not in ("", key(loaded(PLAIN)))


def test_what_it_calls_counts_with_every_line(loaded) -> None:
    calling = ANOTHER["what it calls"]
    assert key(loaded(calling)) != key(loaded(calling.replace("def other(x)", "def other(x, more=0)")))


@pytest.mark.parametrize("text", ["rescale = lambda x: x * {}\n", "rescale = (\n    lambda x: x * {}\n)\n"])
def test_a_lambda(text: str, loaded) -> None:
    one, other = key(loaded(text.format("1.0"))), key(loaded(text.format("2.0")))
    assert one != other
    assert one == key(loaded(text.format(" 1.0  "))) == key(loaded(f"\n\n{text.format('1.0')}"))


def test_what_the_class_itself_says_is_in_its_own_hash() -> None:
    """A property, or whatever else answers for an attribute that its forward names."""

    class Own(nn.Module):
        @property
        def gate(self):
            return 2

        def __getattribute__(self, name):
            return super().__getattribute__(name)

        def forward(self, x):
            return self.gate * x

    assert outside(Own, Own, [], ["gate"], Own.forward, None) == ""


def test_the_order_of_names_counts_for_nothing(loaded) -> None:
    module = loaded(PLAIN)
    namespace = {**Forward.forward.__globals__, **vars(module)}
    function = type(Forward.forward)(Forward.forward.__code__, namespace)
    first = outside(Forward, Forward, ["rescale()", "other()"], [], function, None)
    assert first == outside(Forward, Forward, ["other()", "rescale()", "other()"], [], function, None)
    assert first != key(module)


CLOSURE = """
def _outer():
    def a_helper(x):
        return x * 2

    def z_helper(x):
        return x * 2

    def rescale(x):
        return a_helper(b_never_bound) * z_helper(x)

    if False:
        b_never_bound = 1
    return rescale


rescale = _outer()
"""


@pytest.mark.parametrize("helper", ["a_helper", "z_helper"])
def test_each_function_of_a_closure_counts(helper: str, loaded) -> None:
    """What is not bound yet stands between them."""
    changed = CLOSURE.replace(f"def {helper}(x):\n        return x * 2", f"def {helper}(x):\n        return x * 3")
    assert changed != CLOSURE
    assert key(loaded(changed)) != key(loaded(CLOSURE))
