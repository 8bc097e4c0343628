"""What each operator makes of a piece of code, and what it leaves alone."""

from __future__ import annotations

import pytest

from tools.mutants.finding import is_fault, mutants_of
from tools.mutants.operators import OPERATORS

CHANGES = [
    # operator, code, every replacement that it makes, in the order of the text
    ("drop condition", "x = a and b and c", ["b and c", "a and c", "a and b"]),
    ("drop condition", "x = (a or\n b)", ["(b)", "(a)"]),
    ("drop condition", "x = a and (b or c)", ["(b or c)", "a", "(c)", "(b)"]),
    ("negate comparison", "x = a == b", ["a != b"]),
    ("negate comparison", "x = a not in b", ["a in b"]),
    ("negate comparison", "x = a is not None", []),
    ("boundary", "x = a < b", ["a <= b"]),
    ("boundary", "x = a >= b", ["a > b"]),
    ("assume present", "x = a is not None", ["True"]),
    ("assume present", "x = a is None", ["False"]),
    ("drop not", "x = not a", ["a"]),
    ("drop guard", "def f():\n if a: return 1\n return 2", ["pass"]),
    ("drop guard", "def f():\n if a: return 1\n elif b: return 2\n return 3", []),
    ("drop guard", "for i in x:\n if a:\n  i += 1\n  continue", []),
    ("one branch", "x = a if c else b", ["a", "b"]),
    ("one branch", "x = a if c is not None else b", []),
    ("no reason", "def f() -> str | None:\n return 'why'\n return None", ["return None"]),
    ("no reason", "def f() -> str:\n return 'why'", []),
    ("break or continue", "for i in x:\n if i: continue\n break", ["break", "continue"]),
    ("off by one", "x = y[0] + y[-1] + z[1:]", ["1", "-2", "2"]),
    ("off by one", "x = range(len(y))", ["range((len(y))-1)"]),
    ("drop factor", "x = a * b", ["a", "b"]),
    ("drop factor", "x = a / b", ["a"]),
    ("drop factor", "x = 'a' * b", []),
    ("drop term", "x = a + b", ["a", "b"]),
    ("drop term", "x = a - b", ["a"]),
    ("drop term", "x = a + 'b'", []),
    ("drop update", "x += 1", ["pass"]),
    ("min or max", "x = max(a, b)", ["min(a, b)"]),
    ("flip flag", "def f(a=True): return g(b=False)", ["False", "True"]),
    ("flip flag", "x = zip(a, b, strict=True)", []),
    ("partner", "def f(gate, up): return gate * 2, up", ["up", "gate"]),
    ("partner", "def f(gate): return gate", []),
    ("partner", "def f(a): gate, up = a; g(gate=1)", []),
    ("partner", "def f(a): return a.lora_a + a.lora_b", ["lora_b", "lora_a"]),
    ("swap arguments", "def g(a: int, b: int): ...\ng(x, y)", ["g(y, x)"]),
    ("swap arguments", "def g(a: int, b: str): ...\ng(x, y)", []),
    ("swap arguments", "def f(a: int, b: int): h(a, b)", ["h(b, a)"]),
    ("swap arguments", "h(a, b)", []),
    ("swap arguments", "h(gate, up)", ["h(up, gate)"]),
    ("swap arguments", "def transpose(a: int, b: int): ...\nx.transpose(0, 1)", []),
    ("skip element", "x = a in (1, 2)", ["(2,)", "(1,)"]),
    ("skip element", "x = isinstance(a, (B, C))", ["(C,)", "(B,)"]),
    ("skip element", "return_ = (1, 2)", []),
    ("skip element", "TABLE = frozenset({'a', 'b'})", ["{'b'}", "{'a', }"]),
    ("skip element", "TABLE = {1: 2, 3: 4}", ["{3: 4}", "{1: 2, }"]),
    ("drop order", "x = reversed(y)", ["y"]),
    ("drop conversion", "x = y.to(z).detach()", ["y.to(z)", "y"]),
    ("drop option", "x = f(a, alpha=2, beta=3)", ["f(a, beta=3)", "f(a, alpha=2, )"]),
    ("drop call", "f(x)", ["pass"]),
    ("drop call", "logger.info(x)", []),
    ("drop store", "x.y = 1", ["pass"]),
    ("drop store", "class A:\n def __init__(self): self.x = 1", []),
    ("drop context", "with a:\n b = 1", ["if True: b = 1"]),
    ("drop context", "with a as c:\n b = 1", []),
]


@pytest.mark.parametrize(("operator", "code", "expected"), CHANGES, ids=[f"{c[0]}: {c[1]!r}" for c in CHANGES])
def test_what_an_operator_makes(operator: str, code: str, expected: list[str]) -> None:
    found = [mutant for mutant in mutants_of("a.py", code) if mutant.operator == operator]
    assert [mutant.code()[1].replace(" - 1", "-1") for mutant in found] == expected
    for mutant in found:
        assert is_fault(mutant, code)
        assert mutant.make() != code


def test_every_operator_has_an_example_of_what_it_changes_and_what_it_leaves() -> None:
    assert {case[0] for case in CHANGES if case[2]} == {operator.name for operator in OPERATORS}


@pytest.mark.parametrize(
    "code",
    [
        "from a import b",
        "def f(a: x.y[0] | None): ...",
        "@f(a and b)\ndef g(): ...",
        "raise ValueError(a and b)",
        "assert a is not None",
        "x = f'{a and b}'",
        "if TYPE_CHECKING:\n x = a and b",
    ],
)
def test_declarations_and_messages_are_left_alone(code: str) -> None:
    assert mutants_of("a.py", code) == []


def test_a_mutant_knows_its_place() -> None:
    code = "class A:\n    def f(self, a, b):\n        return a and b\n"
    mutant = next(m for m in mutants_of("p/a.py", code) if m.operator == "drop condition")
    assert (mutant.file, mutant.line, mutant.column, mutant.function) == ("p/a.py", 3, 15, "A.f")
    assert mutant.make() == code.replace("a and b", "b")


def test_a_change_that_is_none_is_no_fault() -> None:
    code = "x = a and a"
    assert [is_fault(m, "x = a") for m in mutants_of("a.py", code)] == [False, False]


def test_the_rank_survives_changes_elsewhere_and_the_key_does_not() -> None:
    code = "def f(a, b):\n    return a and b\n"
    longer = "def g(a, b):\n    return a and b\n\n\n" + code
    (one, *_), (*_, other) = mutants_of("a.py", code), mutants_of("a.py", longer)[:3]
    assert (one.function, other.function) == ("f", "f")
    assert one.rank(1) == other.rank(1)
    assert one.rank(1) != one.rank(2)
    assert one.key != other.key
