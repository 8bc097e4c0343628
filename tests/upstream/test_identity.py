"""What changes the hash of a class, and what does not."""

from __future__ import annotations

import pytest

from patchkit.errors import RewriteError
from patchkit.upstream.classes import class_table
from patchkit.upstream.identity import normalised, source_hash

MLP = '''\
class MLP(nn.Module):
    """A gated MLP."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(16, 32, bias=False)
        self.name = f"mlp of {config.name!r:>{10}} and" "more"

    @decorated
    def forward(self, x, *rest, scale=1.5, **kwargs):
        # what it does
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * {**kwargs}["a"]
'''

SAME = {
    "comment": ("# what it does", "# what it does not"),
    "no comment": ("        # what it does\n", ""),
    "docstring": ('"""A gated MLP."""', "'''Another text,\n  of two lines.'''"),
    "no docstring": ('    """A gated MLP."""\n\n', ""),
    "docstring of a method": ("        # what it does\n", '        """What it does."""\n'),
    "bare string": ("        # what it does\n", '        ("what" "it" "does")\n'),
    "pass beside other statements": ("        # what it does\n", "        pass\n"),
    "blank lines": ("    @decorated\n", "\n\n    @decorated\n"),
    "parentheses and line breaks": ("self.act_fn(self.gate_proj(x))", "(self.act_fn(\n    self.gate_proj(x),\n))"),
    "quotes": ('["a"]', "['a']"),
    "spelling of a constant": ("nn.Linear(16, 32", "nn.Linear(0x10, 3_2"),
    "cut of an f-string": (' and" "more"', ' an" f"dm" "" "ore"'),
}

DIFFERENT = {
    "class name": ("class MLP", "class Mlp"),
    "base": ("nn.Module)", "nn.Sequential)"),
    "operator": (" * self.up_proj", " + self.up_proj"),
    "operand order": ("self.gate_proj(x)) * self.up_proj(x)", "self.up_proj(x)) * self.gate_proj(x)"),
    "constant": ("bias=False", "bias=True"),
    "type of a constant": ("1.5", "1"),
    "number for its text": ("(16, 32", '("16", 32'),
    "text in an f-string": ("mlp of", "MLP of"),
    "conversion in an f-string": ("!r:", "!s:"),
    "width in an f-string": ("{10}", "{11}"),
    "default": ("scale=1.5", "scale=2.5"),
    "no default": ("scale=1.5", "scale"),
    "keyword-only": ("*rest, scale", "scale"),
    "decorator": ("    @decorated\n", ""),
    "annotation": ("self, x,", "self, x: Tensor,"),
    "None as a key for **": ("{**kwargs}", "{None: kwargs}"),
    "statement": ("        # what it does\n", "        x = x\n"),
    "indentation that changes the flow": ("        # what it does\n", "        if x is None:\n            x = 0\n"),
    "dropout": ("return self.down_proj(", "return self.dropout("),
}


def edited(old: str, new: str) -> str:
    assert MLP.count(old) == 1, old
    return MLP.replace(old, new)


@pytest.mark.parametrize("change", SAME)
def test_spelling_does_not_count(change: str) -> None:
    other = edited(*SAME[change])
    assert other != MLP
    assert normalised(other) == normalised(MLP)


@pytest.mark.parametrize("change", DIFFERENT)
def test_behaviour_counts(change: str) -> None:
    assert source_hash(edited(*DIFFERENT[change])) != source_hash(MLP)


def test_every_change_has_a_hash_of_its_own() -> None:
    hashes = [source_hash(MLP), *(source_hash(edited(*change)) for change in DIFFERENT.values())]
    assert len(set(hashes)) == len(hashes)


def test_an_empty_body_is_that_of_pass() -> None:
    assert normalised('class A:\n    "text"') == normalised("class A:\n    pass") != normalised("class A:\n    a = 1")


def test_the_hash_is_the_same_on_every_python() -> None:
    """Written down on Python 3.11; continuous integration runs this on every version that is supported."""
    source = MLP + "    async def f(self, a, /, *, b: int = -1, c, **d) -> 'é\\u3042\\ud800':\n"
    source += (
        "        with a as e, b: return lambda x, *y: [z for z in f'{x:}{y=}' if ... and 0xffffffffffffffffffff]\n"
    )
    source += "        match a:\n            case None | {'k': [1.5e300, *_], **r}: del a[1:2, ::3]; x: int = 2j\n"
    assert source_hash(source) == "454d40f85d820e57f2802bb2bf396e2c515adb1b6f3feb85cbc6dfaa829cf5f2"


def test_an_indented_class_is_hashed_with_its_strings_as_they_are() -> None:
    nested = 'class Outer:\n    class Inner:\n        text = """one\ntwo"""\n'
    text = class_table(nested, "a.py").classes["Outer.Inner"].text
    assert text.startswith("    class Inner:")
    assert source_hash(text) == source_hash('class Inner:\n    text = """one\ntwo"""')


def test_the_text_of_a_class_has_its_decorators_and_nothing_else() -> None:
    source = f"import a\n\n@first\n@second(\n    1\n)\n{MLP}\n\nclass Other: pass\n"
    assert class_table(source, "a.py").classes["MLP"].text == f"@first\n@second(\n    1\n)\n{MLP}"


@pytest.mark.parametrize("source", ["class A(:", "a = 'b\0'", "a = " + "-" * 100_000 + "1", "x = 1" + " + 1" * 5000])
def test_source_that_cannot_be_read_is_a_typed_error(source: str) -> None:
    with pytest.raises(RewriteError, match=r"does not parse|nested too deeply"):
        source_hash(source)
