"""The classes of a module's text: where they stand, what they are called, what they inherit from."""

from __future__ import annotations

import textwrap

import pytest

from patchkit.upstream.classes import class_table


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


def test_of_several_classes_of_one_name_the_last_counts() -> None:
    found = table("class A(B): ...\nclass C: ...\nif x:\n    class A(D):\n        def forward(self): ...\n")
    assert found.repeated == {"A"}
    assert found.classes["A"].bases == ("D",)
    assert found.classes["A"].has_forward
