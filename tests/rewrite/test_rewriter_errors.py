"""What cannot be rewritten at all raises; what is merely not recognised is reported."""

from __future__ import annotations

import re
import warnings

import pytest

from patchkit.arch.spec import Attention, GatedMLP
from patchkit.errors import RewriteError
from patchkit.rewrite import rewriter
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.rewriter import rewrite
from patchkit.upstream.method_text import MethodText

SOURCE = '''"""A module."""
class LlamaAttention:
    size = 1

    def forward(self, x):
        return self.q_proj(x)
'''
CONDITIONAL = """if new:
    class Block:
        def forward(self, x): return self.o_proj(x)
else:
    class Block:
        def forward(self, x): return x
"""


@pytest.mark.parametrize(
    ("source", "name", "method", "message"),
    [
        ("class A:\n    def f(:\n", "A", "f", "file.py:2: the source does not parse"),
        ("x = '\0'", "A", "f", "file.py:1: the source does not parse"),
        ("(" * 1000 + ")" * 1000, "A", "f", "file.py:1: the source does not parse"),
        (SOURCE, "LamaAttention", "forward", "file.py:1: class LamaAttention not found; near it: LlamaAttention"),
        (SOURCE, "Mlp", "forward", "file.py:1: class Mlp not found"),
        (
            SOURCE,
            "LlamaAttention",
            "forwards",
            "file.py:2: class LlamaAttention: method forwards not found; near it: f",
        ),
        (SOURCE, "LlamaAttention", "size", "file.py:2: class LlamaAttention: method size not found"),
        (SOURCE, "LlamaAttention.Inner", "forward", "file.py:2: class Inner not found"),
        ("def f():\n    class A:\n        pass\n", "A", "f", "file.py:1: class A not found"),
        (
            CONDITIONAL,
            "Block",
            "forward",
            "file.py:1: class Block is defined more than once, under conditions (lines 2, 5)",
        ),
    ],
)
def test_errors_name_the_place(source: str, name: str, method: str, message: str) -> None:
    with pytest.raises(RewriteError, match=re.escape(message)):
        rewrite(source, Attention(name), method=method, filename="file.py")


def test_text_that_only_libcst_cannot_parse_is_an_error() -> None:
    with pytest.raises(RewriteError, match=r"^file\.py:7: libcst cannot parse the method"):
        ParsedMethod(MethodText("", "    def forward(self):\n        return $\n", "", 7), "file.py")


def test_text_that_libcst_does_not_reproduce_is_an_error() -> None:
    with pytest.raises(RewriteError, match=r"^file\.py:2: libcst does not reproduce the text"):
        rewrite("class A:\r def f(self): return self.o_proj(1)\r", Attention("A"), method="f", filename="file.py")


def test_a_file_with_invalid_escapes_is_no_error_even_if_warnings_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewritten = rewrite('PATTERN = "\\d"\n' + SOURCE, Attention("LlamaAttention"))
    assert rewritten.sites


@pytest.mark.parametrize(
    "method",
    [
        "def forward(): return self.q_proj(x)",
        "def forward(*args): return args[0].q_proj(x)",
        "@staticmethod\n    def forward(self, x): return self.q_proj(x)",
        "@classmethod\n    def forward(self, x): return self.q_proj(x)",
        "def forward(self, x):\n        self = x\n        return self.q_proj(x)",
        "def forward(self, x):\n        for self in x: y = self.q_proj(x)",
        "def forward(self, x):\n        return [self.q_proj(x) for self in x]",
        "def forward(self, x):\n        with x as self: return self.q_proj(x)",
        "def forward(self, x):\n        import self\n        return self.q_proj(x)",
        "def forward(self, x):\n        def self(): pass\n        return self.q_proj(x)",
        "def forward(self, x):\n        def f():\n            nonlocal self\n            self = x\n        return self.q_proj(x)",
    ],
)
def test_no_self_is_reported(method: str) -> None:
    source = f"class Block:\n    {method}\n"
    rewritten = rewrite(source, Attention("Block"))
    assert rewritten.source == source
    assert [skip.part for skip in rewritten.skips] == ["qkv", "o"]
    assert "no first parameter that stands for the object" in rewritten.skips[0].reason


@pytest.mark.parametrize("call", ["apply_qkv(x)", "apply_o(x)", "apply_mlp(x)", "apply_linear(self.q_proj, x)"])
def test_already_rewritten(call: str) -> None:
    source = f"class Block:\n    def forward(self, x):\n        return self.{call}, self.o_proj(x), self.down_proj(x)\n"
    for block, blocks in ((Attention("Block"), ["qkv", "o"]), (GatedMLP("Block"), ["mlp"])):
        rewritten = rewrite(source, block)
        assert rewritten.source == source
        assert not rewritten.sites
        assert [(skip.part, skip.reason) for skip in rewritten.skips] == [
            (name, "already rewritten") for name in blocks
        ]


def test_nothing_to_rewrite_gives_the_text_back_to_the_byte() -> None:
    source = "class Block:\r\n\tdef forward(self,x) :\r\n\t\treturn  x \\\r\n\t\t\t+1 ;\f\r\n# end"
    for block in (Attention("Block"), GatedMLP("Block")):
        rewritten = rewrite(source, block)
        assert rewritten.source == source
        assert rewritten.method_source == "\tdef forward(self,x) :\r\n\t\treturn  x \\\r\n\t\t\t+1 ;\f\r\n"
        assert rewritten.sites == ()
        assert all(skip.reason.startswith("absent: ") for skip in rewritten.skips)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RecursionError(),
            "file.py:1: LlamaAttention.forward cannot be rewritten: it is nested too deeply, or too large",
        ),
        (MemoryError(), "file.py:1: LlamaAttention.forward cannot be rewritten: it is nested too deeply, or too large"),
        (KeyError("odd"), "file.py:1: LlamaAttention.forward cannot be rewritten: KeyError: 'odd'"),
        (RewriteError("as it is"), "as it is"),
    ],
)
def test_whatever_fails_is_an_error_of_this_class(error, said, monkeypatch):
    """The text of others can exceed each limit there is, anywhere."""

    def fail(*_):
        raise error

    monkeypatch.setattr(rewriter, "_plan", fail)
    with pytest.raises(RewriteError, match=f"^{re.escape(said)}$"):
        rewrite(SOURCE, Attention("LlamaAttention"), filename="file.py")


@pytest.mark.parametrize("length", [99, 100, 101, 300])
def test_long_code_is_cut_where_it_is_quoted(length):
    code = f"self.q_proj({'x' * (length - 20)} + y, z)"
    code = code.replace("x", "x" * (length - len(code) + 1), 1) if len(code) < length else code
    assert len(code) == length
    found = rewrite(f"class A:\n    def f(self):\n        a = {code}\n", Attention("A"), method="f")
    quoted = f"`{code}`" if length <= 100 else f"`{code[:97]}...`"
    assert any(quoted in skip.reason for skip in found.skips)
