"""The classes of a module's text: where they stand, what they inherit from, and which of one name counts."""

from __future__ import annotations

import functools
import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest

from patchkit.errors import RewriteError, UndecidedError
from patchkit.upstream.classes import class_table, definition, first_line
from patchkit.upstream.identity import source_hash
from patchkit.upstream.live import LiveMethod, read_method
from patchkit.upstream.method_text import find_method
from patchkit.upstream.text import parsed, split_lines


def table(text: str):
    return class_table(textwrap.dedent(text), "a.py")


BASES = {
    # the base as it is written: as it is known
    "A": ("A",),
    "nn.Module": ("nn.Module",),
    "a.b.c.D": ("a.b.c.D",),
    "A, b.C": ("A", "b.C"),
    "b.C, A": ("b.C", "A"),
    "A, A, A": ("A",),
    "A, B, A": ("A", "B"),
    "f(x)": ("",),
    "G[int]": ("",),
    "f(x).A": ("",),
    "A, metaclass=M": ("A",),
    "": (),
}


@pytest.mark.parametrize("written", BASES)
def test_bases(written: str) -> None:
    assert table(f"class X({written}):\n    pass\n").classes["X"].bases == BASES[written]


PLACES = {
    "at the top": ("class X:\n    def forward(self): ...\n", 1),
    "under if": ("if a:\n    class X:\n        def forward(self): ...\n", 2),
    "under else": ("if a:\n    pass\nelse:\n    class X:\n        def forward(self): ...\n", 4),
    "under elif": ("if a:\n    pass\nelif b:\n    class X:\n        def forward(self): ...\n", 4),
    "under try": ("try:\n    class X:\n        def forward(self): ...\nfinally:\n    pass\n", 2),
    "under try's else": (
        "try:\n    pass\nexcept E:\n    pass\nelse:\n    class X:\n        def forward(self): ...\n", 6,
    ),
    "under finally": ("try:\n    pass\nfinally:\n    class X:\n        def forward(self): ...\n", 4),
    "under with": ("with a:\n    class X:\n        def forward(self): ...\n", 2),
    "decorated": ("@a\n@b\nclass X:\n    def forward(self): ...\n", 1),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_places(place: str) -> None:
    text, line = PLACES[place]
    entry = table(text).classes["X"]
    assert (entry.line, entry.has_forward) == (line, True)


def test_a_class_in_a_class_has_both_names_and_one_in_a_function_none() -> None:
    found = table(
        """
        class A:
            class B:
                class C: ...
                def forward(self): ...
        def f():
            class D: ...
        """
    )
    assert set(found.classes) == {"A", "A.B", "A.B.C"}
    assert [found.classes[name].has_forward for name in ("A", "A.B", "A.B.C")] == [False, True, False]


def test_heirs_are_those_of_the_whole_line_that_have_a_forward() -> None:
    found = table(
        """
        class A:
            def forward(self): ...
        class B(A): ...
        class C(B):
            def forward(self): ...
        class D(A):
            def forward(self): ...
        class E:
            def forward(self): ...
        """
    )
    assert set(found.heirs("A")) == {"C", "D"}
    assert list(found.heirs("E")) == []


IMPORTS = {
    "from a.b import C": {"C": ("a.b", "C")},
    "from a import C as D": {"D": ("a", "C")},
    "from . import c": {"c": (".", "c")},
    "from .a import C": {"C": (".a", "C")},
    "from ...a.b import C as D, E": {"D": ("...a.b", "C"), "E": ("...a.b", "E")},
    "import a.b": {},
}


@pytest.mark.parametrize("written", IMPORTS)
def test_imports(written: str) -> None:
    assert table(written).imports == IMPORTS[written]


# ---- which of several counts: what Python does, where the text alone can say it

CLASS = "class A:\n    def forward(self): ...\n"
IN = textwrap.indent(CLASS, "    ")
IN_TWO = textwrap.indent(IN, "    ")
MISSING = "import a_module.that_is_missing as A\n"

FOUND = {
    # the text, the class, and the line of the method that Python keeps
    "at the top": (CLASS, "A", 2),
    "if": (f"if True:\n{IN}", "A", 3),
    "else": (f"if False:\n    pass\nelse:\n{IN}", "A", 5),
    "elif": (f"if False:\n    pass\nelif True:\n{IN}", "A", 5),
    "try": (f"try:\n{IN}finally:\n    pass\n", "A", 3),
    "except ImportError": (f"try:\n    {MISSING}except ImportError:\n{IN}", "A", 5),
    "try's else": (f"try:\n    pass\nexcept ImportError:\n    pass\nelse:\n{IN}", "A", 7),
    "finally": (f"try:\n    pass\nfinally:\n{IN}", "A", 5),
    "with": (f"import warnings\nwith warnings.catch_warnings():\n{IN}", "A", 4),
    "for": (f"for _ in range(2):\n{IN}", "A", 3),
    "for's else": (f"for _ in range(2):\n    pass\nelse:\n{IN}", "A", 5),
    "while": (f"n = 2\nwhile n:\n    n -= 1\n{IN}", "A", 5),
    "while's else": (f"while False:\n    pass\nelse:\n{IN}", "A", 5),
    "case": (f"match 1:\n    case 1:\n{IN_TWO}", "A", 4),
    "conditions in conditions": (f"if True:\n    try:\n        x\n    except NameError:\n{IN_TWO}", "A", 6),
    "nested": (f"class B:\n{IN}", "B.A", 3),
    "nested, under conditions": (f"if 1:\n  class B:\n    if 1:\n{IN_TWO}", "B.A", 5),
    "in the last class of a name": (f"class B:\n{IN}class B:\n{IN}", "B.A", 6),
    "twice": (CLASS * 2, "A", 4),
    "twice, also as a function": (f"def A(): ...\n{CLASS}", "A", 3),
    "first under if": (f"if True:\n{IN}{CLASS}", "A", 5),
    "first under try and except": (f"try:\n{IN}    {MISSING}except ImportError:\n{IN}{CLASS}", "A", 9),
    "beside one in a function": (f"{CLASS}def f():\n{IN}", "A", 2),
    "beside one in a class": (f"{CLASS}class B:\n{IN}", "A", 2),
    "decorated": (f"same = lambda x: x\n@same\n@same\n{CLASS}", "A", 5),
    "decorated method": ("same = lambda x: x\nclass A:\n    @same\n    @same\n    def forward(self): ...\n", "A", 3),
    "async method": ("class A:\n    async def forward(self): ...\n", "A", 2),
    "method under if": ("class A:\n    if True:\n        def forward(self): ...\n", "A", 3),
    "method under except": (
        "class A:\n    try:\n        x\n    except NameError:\n        def forward(self): ...\n", "A", 5,
    ),
    "method twice": ("class A:\n    def forward(self): ...\n    def forward(self): return 1\n", "A", 3),
    "method first under if": (
        "class A:\n    if True:\n        def forward(self): ...\n    def forward(self): return 1\n", "A", 4,
    ),
    "method beside one that it holds": ("class A:\n    def forward(self):\n        def forward(): ...\n", "A", 2),
}  # fmt: skip

UNDECIDED = {
    # the text, the class, the line of what surrounds the definitions, which of them it is, and their lines
    "if and else, the first": (f"if True:\n{IN}else:\n{IN}", "A", "1: class A", "2, 5"),
    "if and else, the last": (f"if False:\n{IN}else:\n{IN}", "A", "1: class A", "2, 5"),
    "try and except, the first": (f"try:\n{IN}except ImportError:\n{IN}", "A", "1: class A", "2, 5"),
    "try and except, the last": (f"try:\n    {MISSING}{IN}except ImportError:\n{IN}", "A", "1: class A", "3, 6"),
    "then under if, which runs": (f"{CLASS}if True:\n{IN}", "A", "1: class A", "1, 4"),
    "then under if, which does not": (f"{CLASS}if False:\n{IN}", "A", "1: class A", "1, 4"),
    "then in a loop": (f"{CLASS}for _ in range(1):\n{IN}", "A", "1: class A", "1, 4"),
    "then in a loop that does not run": (f"{CLASS}while False:\n{IN}", "A", "1: class A", "1, 4"),
    "in cases": (f"match 1:\n    case 0:\n{IN_TWO}    case 1:\n{IN_TWO}", "A", "1: class A", "3, 6"),
    "twice under one if": (f"if True:\n{IN}{IN}", "A", "1: class A", "2, 4"),
    "then a function under if": (f"{CLASS}if False:\n    def A(): ...\n", "A", "1: class A", "1, 4"),
    "the class around it": (f"class B:\n{IN}if False:\n    class B: ...\n", "B.A", "1: class B", "1, 5"),
    "nested": (f"x = 1\nclass B:\n{IN}    if False:\n{IN_TWO}", "B.A", "2: class A", "3, 6"),
}


def live(text: str, name: str, folder: Path) -> tuple[LiveMethod | str, str]:
    """What is found of a class once Python has run the text, and the name of the file."""
    file = folder / "written.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("written", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return read_method(functools.reduce(getattr, name.split("."), module), "forward"), str(file)


@pytest.mark.parametrize("case", FOUND)
def test_what_python_keeps_is_found_live_and_in_the_text(case: str, tmp_path: Path) -> None:
    text, name, line = FOUND[case]
    method, file = live(text, name, tmp_path)
    assert isinstance(method, LiveMethod), method
    assert method.function.__code__.co_firstlineno == line
    assert first_line(definition(parsed(text), method.function.__qualname__)) == line
    assert find_method(text, name, "forward", file).line == line
    entry = class_table(text, file).classes[name]
    assert entry.has_forward
    assert entry.line < line < entry.line + len(split_lines(entry.text))
    assert entry.source == source_hash(textwrap.dedent(entry.text))


@pytest.mark.parametrize("case", UNDECIDED)
def test_what_a_condition_decides_is_refused_live_and_in_the_text(case: str, tmp_path: Path) -> None:
    text, name, what, lines = UNDECIDED[case]
    said, file = live(text, name, tmp_path)
    entry = class_table(text, file).classes.get(name)
    if entry is not None:  # the class that surrounds it need not have it
        assert entry.has_forward
        with pytest.raises(UndecidedError) as raised:
            _ = entry.source
        assert said == str(raised.value)
    with pytest.raises(UndecidedError) as raised:
        find_method(text, name, "forward", file)
    assert said == str(raised.value)
    assert said == f"{file}:{what} is defined more than once, under conditions (lines {lines})"


@pytest.mark.parametrize("first", [True, False])
def test_so_is_a_method_that_a_condition_decides(first: bool, tmp_path: Path) -> None:
    text = f"class A:\n    if {first}:\n        def forward(self): ...\n    else:\n        def forward(self): ...\n"
    said, file = live(text, "A", tmp_path)
    with pytest.raises(UndecidedError) as raised:
        find_method(text, "A", "forward", file)
    assert class_table(text, file).classes["A"].has_forward
    assert said == str(raised.value)
    assert said == f"{file}:1: class A: method forward is defined more than once, under conditions (lines 3, 5)"


def test_a_class_in_a_function_is_found_neither_way(tmp_path: Path) -> None:
    text = f"def f():\n{IN}    return A\nclass B:\n    A = f()\n"
    said, file = live(text, "B.A", tmp_path)
    assert isinstance(said, str)
    assert "is defined in a function" in said
    assert set(class_table(text, file).classes) == {"B"}
    with pytest.raises(RewriteError, match="class A not found"):
        find_method(text, "A", "forward", file)


def test_a_class_whose_name_a_function_has_taken_is_found_neither_way(tmp_path: Path) -> None:
    text = f"{CLASS}B = A\ndef A(): ...\n"
    said, file = live(text, "B", tmp_path)
    assert isinstance(said, str)
    assert "the code of forward in memory is not that of" in said
    assert not class_table(text, file).classes
    with pytest.raises(RewriteError, match="class A not found"):
        find_method(text, "A", "forward", file)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="except* came with Python 3.11")
def test_under_except_star(tmp_path: Path) -> None:
    text = f"try:\n    raise ExceptionGroup('', [OSError()])\nexcept* OSError:\n{IN}"
    method, file = live(text, "A", tmp_path)
    assert isinstance(method, LiveMethod)
    assert find_method(text, "A", "forward", file).line == method.function.__code__.co_firstlineno == 5


def test_a_class_in_an_earlier_class_of_its_outer_name_is_gone() -> None:
    assert set(table(f"class B:\n{IN}class B: ...\n").classes) == {"B"}


UNDECIDED_FORWARDS = {
    # two definitions under conditions: whether the class has to be taken for one with a forward of its own
    "neither": ("class A(B): ...", "class A(B): ...", False),
    "the first": ("class A(B):\n        def forward(self): ...", "class A(B): ...", True),
    "the last": ("class A(B): ...", "class A(B):\n        def forward(self): ...", True),
    "neither, of other bases": ("class A(B): ...", "class A(C): ...", True),
}


@pytest.mark.parametrize("case", UNDECIDED_FORWARDS)
def test_an_undecided_class_passes_for_one_without_forward_only_if_all_agree(case: str) -> None:
    first, last, has_forward = UNDECIDED_FORWARDS[case]
    entry = class_table(f"if x:\n    {first}\nelse:\n    {last}\n", "a.py").classes["A"]
    assert entry.has_forward is has_forward
    assert entry.undecided.startswith("a.py:1: class A is defined more than once, under conditions (lines 2, ")
    assert entry.text == f"    {last}\n"


FORWARDS = {
    "def forward(self): ...": True,
    "async def forward(self): ...": True,
    "if x:\n        def forward(self): ...": True,
    "def other(self): ...": False,
    "forward = other": False,
    "def other(self):\n        def forward(): ...": False,
    "class forward: ...": False,
}


@pytest.mark.parametrize("body", FORWARDS)
def test_what_is_a_forward(body: str) -> None:
    assert class_table(f"class A:\n    {body}\n", "a.py").classes["A"].has_forward is FORWARDS[body]


def test_near_names_are_those_of_the_same_kind() -> None:
    text = "class Attention: ...\ndef Attentions(): ...\nif x:\n    class Attention2: ...\n"
    with pytest.raises(RewriteError, match=r"^a\.py:1: class Attention1 not found; near it: Attention, Attention2$"):
        find_method(text, "Attention1", "forward", "a.py")
