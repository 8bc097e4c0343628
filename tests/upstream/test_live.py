"""Functions as they run, and where they stand in their file: each way in which one can be another than its text."""

from __future__ import annotations

import ast
import linecache
from pathlib import Path

import pytest

from patchkit.upstream import live
from patchkit.upstream.live import alike, definition_of, inner_codes, read_method, with_code

TEXT = '''\
def plain(a, b=1, *, c=2) -> int:
    """Says so."""
    def inner(x):
        return [y for y in x]
    return inner


class Holder:
    def method(self):
        return 1

    def twice(self):
        return 1

    def twice(self):
        return 2


one = lambda x: x + 1
two, three = lambda x: x, lambda x: x
four = lambda x: (lambda y: y + x)


def outer(first, second):
    def reads():
        return first
    def other():
        return second + first
    return reads, other
'''


@pytest.fixture
def space(tmp_path: Path):
    """What the text defines, as if it had been imported; ``edit`` writes another text into its file."""
    path = tmp_path / "written.py"
    path.write_text(TEXT)
    found = {"__name__": "written"}
    exec(compile(TEXT, str(path), "exec", dont_inherit=True), found)

    def edit(text: str) -> None:
        path.write_text(text)
        linecache.checkcache(str(path))

    found["edit"] = edit
    yield found
    linecache.clearcache()


def line_of(node: ast.AST | None) -> int | None:
    return None if node is None else node.lineno  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("expression", "line"),
    [
        ("plain", 1), ("plain(1)", 3), ("Holder.method", 9), ("Holder.twice", 15), ("one", 19), ("two", None),
        ("three", None), ("four", None), ("outer", 24), ("outer(1, 2)[0]", 25), ("outer(1, 2)[1]", 27),
    ],
)  # fmt: skip
def test_where_a_function_stands(expression: str, line: int | None, space) -> None:
    """Two lambdas of one line cannot be told apart."""
    assert line_of(definition_of(eval(expression, space))) == line


@pytest.mark.parametrize(
    "text",
    ["", "def plain(\n", TEXT.replace("return inner", "return x"), "\n" + TEXT, TEXT.replace("plain", "other")],
    ids=["gone", "no Python", "another line", "moved", "renamed"],
)
def test_what_runs_is_not_what_its_file_says(text: str, space) -> None:
    assert definition_of(space["plain"]) is not None
    space["edit"](text)
    assert definition_of(space["plain"]) is None


def test_a_change_elsewhere_in_the_file_says_nothing(space) -> None:
    space["edit"](TEXT.replace("return 2", "return 3"))
    assert line_of(definition_of(space["plain"])) == 1
    assert definition_of(space["Holder"].twice) is None


def test_every_code_in_a_code(space) -> None:
    names = [code.co_name for code in inner_codes(space["plain"].__code__)]
    assert names[:2] == ["plain", "inner"]
    assert [code.co_name for code in inner_codes(space["four"].__code__)] == ["<lambda>", "<lambda>"]


def test_a_function_with_other_code_is_the_same_in_everything_else(space) -> None:
    plain = space["plain"]
    plain.mark = 1
    new = alike(plain, space["one"].__code__, None)
    assert new.__code__ is space["one"].__code__
    for name in ("__globals__", "__defaults__", "__kwdefaults__", "__annotations__", "__name__", "__qualname__"):
        assert getattr(new, name) == getattr(plain, name), name
    assert (new.__doc__, new.__module__, vars(new)) == ("Says so.", "written", {"mark": 1})
    assert (plain.__defaults__, plain.__kwdefaults__) == ((1,), {"c": 2})
    vars(new)["mark"] = 2
    assert plain.mark == 1


def test_other_code_has_the_cells_of_its_names(space) -> None:
    reads, other = space["outer"]("first", "second")
    made = with_code(other, reads.__code__)
    assert made() == "first"
    assert made.__name__ == "other"
    with pytest.raises(ValueError, match=r"^the rewritten code needs second of an enclosing scope$"):
        with_code(reads, other.__code__)
    with pytest.raises(ValueError, match=r"needs second, first|needs first, second"):
        with_code(space["plain"], other.__code__)
    assert with_code(reads, space["one"].__code__)(1) == 2


class Above:
    def forward(self):
        return 1

    odd = property(lambda self: 1)
    number = 3


class Below(Above):
    pass


def test_which_class_defines_a_method() -> None:
    found = read_method(Below, "forward")
    assert not isinstance(found, str)
    assert (found.owner, found.attribute, found.function) == (Above, Above.forward, Above.forward)
    assert found.source == Path(__file__).read_text("utf-8")
    assert found.filename == __file__
    assert read_method(Below, "backward") == "it has no method backward"
    assert read_method(Below, "odd") == "its odd is a property, not a function"
    assert read_method(Below, "number") == "its number is a int, not a function"


def test_a_method_that_wraps_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def circle(self):
        return 1

    circle.__wrapped__ = circle
    monkeypatch.setattr(Above, "forward", circle)
    assert read_method(Below, "forward") == "its forward is wrapped in a circle"


@pytest.mark.parametrize(("name", "value"), [("__module__", "other"), ("__qualname__", "Above.backward")])
def test_a_method_of_another_place(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Above.forward, name, value)
    module, path = Above.forward.__module__, Above.forward.__qualname__
    assert read_method(Below, "forward") == f"its forward was replaced by {module}.{path}"


def test_a_text_that_does_not_compile_has_no_code() -> None:
    for text in ("def f(:\n", "x = '\0'", "(" * 500 + ")" * 500):
        assert live.compiled(text, "a.py") is None
    assert live.find_code(None, "f") is None
    module = live.compiled("class A:\n    def f():\n        pass\n", "a.py")
    assert live.find_code(module, "A.f") is not None
    assert live.find_code(module, "A.g") is None
