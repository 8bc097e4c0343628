"""Layers of one variable in classes that are neither an attention nor an MLP: what is derived, and what the rule takes."""

from __future__ import annotations

import pytest
from class_texts import class_of

from patchkit.arch.spec import SharedInput
from patchkit.derivation.derive import derive_from_text
from patchkit.rewrite.rewriter import rewrite

FORMS = {
    "k and v of another input": (
        "q = self.q(x)\nk, v = self.k(y), self.v(y)\nreturn self.o(f(q, k, v))",
        (("k", "v"),),
    ),
    "in a branch": (
        "q = self.q(x)\nif flag:\n    k, v = self.k(y), self.v(y)\nelse:\n    k, v = y\nreturn self.o(f(q, k, v))",
        (("k", "v"),),
    ),
    "an input that a branch decides": (
        "h = y if flag else x\nq = self.q(x)\nk = self.k(h).view(2, 4)\nv = self.v(h).view(2, 4)\nreturn self.o(f(q, k, v))",
        (("k", "v"),),
    ),
    "q and k": ("h = x + y\nq = self.q(h)\nk = self.k(h)\nv = self.v(x)\nreturn self.o(f(q, k, v))", (("q", "k"),)),
    "without names": ("a, b, c, d = self.a(x), self.b(x), self.c(x), self.d(x)\nreturn a, b, c, d", (("a", "b", "c", "d"),)),
    "two groups": ("a, b = self.a(x), self.b(x)\nc, d = self.c(y), self.d(y)\nreturn a * b + c * d", (("a", "b"), ("c", "d"))),
    "the order of calls": ("a = self.b(x) * self.a(x)\nreturn a", (("b", "a"),)),
    "gate and up of an MLP that is none": (
        "g = self.g(x).clamp(max=7)\nu = self.u(x)\nreturn self.d(self.act(g) * u)",
        (("g", "u"),),
    ),
    "a multiplier in an activation": ("y = self.u(x) * self.act(self.g(x) * 3)\nreturn self.d(y) * 2", (("u", "g"),)),
}  # fmt: skip


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_derived_is_rewritten(form: str, init: bool) -> None:
    body, groups = FORMS[form]
    source = class_of(body, init=init)
    block = derive_from_text(source, "Block")
    assert block == SharedInput("Block", groups)
    rewritten = rewrite(source, block)
    assert [site.calls for site in rewritten.sites] == list(groups)
    assert not rewritten.skips


NONE = {
    "one call": "return self.a(x)",
    "two inputs": "return self.a(x) + self.b(y)",
    "the input changes": "a = self.a(x)\nx = x + 1\nreturn a + self.b(x)",
    "one of them in a branch": "a = self.a(x)\nif flag:\n    a = a + self.b(x)\nreturn a",
    "one of them under a condition": "return self.a(x) + (self.b(x) if flag else 0)",
    "two branches": "if flag:\n    a = self.a(x)\nelse:\n    a = self.b(x)\nreturn a",
    "in a loop": "a = self.a(x)\nfor z in y:\n    a = a + self.b(x)\nreturn a",
    "twice the same": "return self.a(x) + self.a(x)",
    "called twice, of another input too": "return self.a(x) + self.b(x) + self.b(y)",
    "no variable": "return self.a(x + 1) + self.b(x + 1)",
    "two arguments": "return self.a(x, y) + self.b(x, y)",
    "by keyword": "return self.a(input=x) + self.b(input=x)",
    "nested": "def later():\n    return self.a(x) + self.b(x)\nreturn later()",
    "lambda": "return f(lambda: self.a(x), self.b(x))",
    "another object's": "return x.a(y) + x.b(y) + self.c(x)",
    "not linear": "return self.a(x) + self.norm(x)",
}


@pytest.mark.parametrize("name", NONE)
def test_no_shared_input(name: str) -> None:
    assert isinstance(derive_from_text(class_of(NONE[name]), "Block"), str)


def test_layers_of_another_kind_are_in_no_group() -> None:
    source = class_of("return self.a(x) + self.norm(x) + self.act(x) + self.b(x)")
    assert derive_from_text(source, "Block") == SharedInput("Block", (("a", "b"),))


def test_an_attention_and_an_mlp_come_first() -> None:
    gated = "x = self.w2(F.silu(self.w1(x)) * self.w3(x))\n"
    shared = "x = self.a(x) + self.b(x)\n"
    for body in (gated + shared, "x = self.o_proj(f(self.q_proj(x), self.k_proj(x), self.v_proj(x)))\n" + shared):
        assert not isinstance(derive_from_text(class_of(body), "Block"), SharedInput)
