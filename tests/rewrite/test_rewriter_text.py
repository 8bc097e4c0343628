"""Which text is touched: the method that was asked for, the parts that were asked for, and nothing else."""

from __future__ import annotations

import pytest

from patchkit.arch.spec import Attention, GatedMLP
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.rewriter import rewrite
from patchkit.upstream.method_text import find_method

QKV = "q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)"
SOURCE = f"""class Other:
    def forward(self, x):
        return self.o_proj(x)

class Block:
    def helper(self, x):
        return self.o_proj(x)

    @decorate(
        "forward"
    )
    @again
    def forward(self, x):
        {QKV}
        return self.o_proj(attend(q, k, v))

    def after(self, x):
        return self.o_proj(x)
"""


def test_only_the_method_is_touched_and_its_decorators_stay() -> None:
    rewritten = rewrite(SOURCE, Attention("Block"))
    assert rewritten.source == SOURCE.replace(
        QKV, "query, key, value = self.apply_qkv(x)\n        q, k, v = query, key, value"
    ).replace("self.o_proj(attend", "self.apply_o(attend")
    assert (
        rewritten.method_source
        == rewritten.source[SOURCE.index("    @decorate") : -len(SOURCE[SOURCE.index("\n    def after") :])]
    )
    assert rewritten.line == 9
    assert (rewritten.class_name, rewritten.method) == ("Block", "forward")
    assert [(site.rule, site.line, site.calls) for site in rewritten.sites] == [
        ("qkv-together", 14, ("q_proj", "k_proj", "v_proj")),
        ("output-call", 15, ("o_proj",)),
    ]
    assert rewritten.skips == ()


@pytest.mark.parametrize("only", [{"qkv"}, {"o"}, {"mlp"}, set(), {"qkv", "o"}])
def test_only(only: set) -> None:
    rewritten = rewrite(SOURCE, Attention("Block"), only=frozenset(only))
    assert {site.part for site in rewritten.sites} == only - {"mlp"}
    assert ("apply_qkv" in rewritten.source) == ("qkv" in only)
    assert ("apply_o" in rewritten.source) == ("o" in only)
    assert rewritten.skips == ()
    assert not rewrite(SOURCE, GatedMLP("Block"), only=frozenset(only - {"mlp"})).skips


def test_another_method() -> None:
    rewritten = rewrite(SOURCE, Attention("Block"), method="after")
    assert rewritten.source == SOURCE.removesuffix("self.o_proj(x)\n") + "self.apply_o(x)\n"
    assert rewritten.method == "after"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("indent", ["\t", "  ", "        "])
@pytest.mark.parametrize("end", ["", "NEWLINE", "NEWLINE# a comment"])
def test_newlines_and_indentation_are_kept(newline: str, indent: str, end: str) -> None:
    def text(body: str) -> str:
        lines = ["# \u00e9\u4e2d \u2028 \f", "class Block:", *body.split("\n")]
        return newline.join(lines).replace(">", indent) + end.replace("NEWLINE", newline)

    source = text(">def forward(self, x):\n>># all\n>>y = self.q_proj(x)\n>>return y, self.k_proj(x), self.v_proj(x)")
    after = text(">def forward(self, x):\n>># all\n>>q, k, v = self.apply_qkv(x)\n>>y = q\n>>return y, k, v")
    assert rewrite(source, Attention("Block")).source == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def forward(self, x): return {qkv}", "def forward(self, x): q, k, v = self.apply_qkv(x); return q, k, v"),
        ("def forward(me, /, x): return {qkv}", "def forward(me, /, x): q, k, v = me.apply_qkv(x); return q, k, v"),
        ("def forward(self, q):\n  return {qkv}", "def forward(self, q):\n  query, key, value = self.apply_qkv(q)\n  return query, key, value"),
        ("def forward(self, x):\n  pass; a = {qkv};", "def forward(self, x):\n  pass; q, k, v = self.apply_qkv(x); a = q, k, v;"),
        ("def forward(self, x):\n  if x: pass; a = {qkv}", "def forward(self, x):\n  if x: pass; q, k, v = self.apply_qkv(x); a = q, k, v"),
        ("def forward(self, x):\n  return(self.q_proj(x))+(self.k_proj)(x)@self.v_proj(\n x,)", "def forward(self, x):\n  q, k, v = self.apply_qkv(x)\n  return(q)+k@v"),
        ("def forward(self, x): return self.q_proj(  x  )if x else x", "def forward(self, x): return self.apply_linear(  self.q_proj, x  )if x else x"),
        ("def forward(self, x): return self.q_proj(y:=x)", "def forward(self, x): return self.apply_linear(self.q_proj, y:=x)"),
        ("def forward(self, x): return self.q_proj(i for i in x)", "def forward(self, x): return self.q_proj(i for i in x)"),
        ("def forward(self, x): return self.q_proj((i for i in x))", "def forward(self, x): return self.apply_linear(self.q_proj, (i for i in x))"),
        ("def forward(self, x): return self.q_proj(self.k_proj(x))", "def forward(self, x): return self.apply_linear(self.q_proj, self.apply_linear(self.k_proj, x))"),
        ("def forward(self, x): return self.o_proj(self.o_proj(x))", "def forward(self, x): return self.apply_o(self.apply_o(x))"),
        ("async def forward(self, x): return self.o_proj(await x)", "async def forward(self, x): return self.apply_o(await x)"),
    ],
)  # fmt: skip
def test_forms_of_a_statement(before: str, after: str) -> None:
    qkv = before.replace("{qkv}", "{0}.q_proj({1}), {0}.k_proj({1}), {0}.v_proj({1})")
    qkv = qkv.format("me" if "(me" in before else "self", "q" if "(self, q)" in before else "x")
    rewritten = rewrite(f"class Block:\n {qkv}", Attention("Block"))
    assert rewritten.source == f"class Block:\n {after}"
    compile(rewritten.source, "rewritten", "exec")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "Block",
            "try:\n    import x\nexcept ImportError:\n    class Block:\n        def forward(self, x): return CALL\n",
        ),
        ("Block", "class Block: pass\nclass Block:\n    def forward(self, x): return CALL\n"),
        ("Block", "class Block:\n    if 1:\n        def forward(self, x): return CALL\n"),
        (
            "Block",
            "class Block:\n    def forward(self, x): return self.o_proj(y)\n    def forward(self, x): return CALL\n",
        ),
        ("Outer.Block", "class Outer:\n    class Block:\n        def forward(self, x): return CALL\n"),
    ],
)
def test_where_the_class_may_stand(name: str, source: str) -> None:
    rewritten = rewrite(source.replace("CALL", "self.o_proj(x)"), Attention(name))
    assert rewritten.source == source.replace("CALL", "self.apply_o(x)")


@pytest.mark.parametrize("length", [1, 99, 100, 101, 200])
def test_a_message_quotes_at_most_a_hundred_characters(length: int) -> None:
    name = "x" * length
    source = f"class Block:\n    def forward(self):\n        return {name}\n"
    method = ParsedMethod(find_method(source, "Block", "forward", "block.py"), "block.py")
    (node,) = [node for node in method.names if node.value == name]
    assert method.quote(node) == (f"`{name}`" if length <= 100 else f"`{name[:97]}...`")
