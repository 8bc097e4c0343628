"""Code that looks like an attention or an MLP and is none: nothing is derived, and the reason says what is different."""

from __future__ import annotations

import pytest
from class_texts import class_of
from transformers.models.llama.modeling_llama import LlamaMLP

from patchkit.arch.spec import MLP, Attention, GatedMLP
from patchkit.derivation.derive import NO_LINEAR, derive, derive_from_text
from patchkit.errors import RewriteError

ATTENTIONS = {
    "k on another input": ("q, k, v = self.q(x), self.k(y), self.v(x)\nreturn self.o(f(q, k, v))", "read different variables"),
    "k and v on another input": (
        "q, k, v = self.q(x), self.k(y), self.v(y)\nreturn self.o(f(q, k, v))",
        "`q` and `k` read different variables",
    ),
    "input changes": (
        "q = self.q(x)\nx = x + 1\nk = self.k(x)\nv = self.v(x)\nreturn self.o(f(q, k, v))",
        "`q` and `k` read different variables, or one that changes",
    ),
    "k called twice": ("q, k, v = self.q(x), self.k(x) + self.k(x), self.v(x)\nreturn self.o(f(q, k, v))", "`k` is called 2 times"),
    "nested function": (
        "q, k = self.q(x), self.k(x)\ndef later():\n    return self.v(x)\nreturn self.o(f(q, k, later()))",
        "`v` is called in a nested function",
    ),
    "lambda": ("q, k = self.q(x), self.k(x)\nreturn self.o(f(q, k, lambda: self.v(x)))", "`v` is called in a nested function"),
    "branch": (
        "q, k = self.q(x), self.k(x)\nif flag:\n    v = self.v(x)\nelse:\n    v = k\nreturn self.o(f(q, k, v))",
        "`q` and `v` are called in different branches",
    ),
    "condition": (
        "q, k = self.q(x), self.k(x)\nv = self.v(x) if flag else k\nreturn self.o(f(q, k, v))",
        "`q` and `v` are called in different branches",
    ),
    "loop": (
        "q, k = self.q(x), self.k(x)\nfor x in y:\n    q = f(q, k, self.v(x))\nreturn self.o(q)",
        "`q` and `v` are called in different branches",
    ),
    "no variable": ("q, k, v = self.q(x + 1), self.k(x), self.v(x)\nreturn self.o(f(q, k, v))", "something else than one variable"),
    "two arguments": ("q, k, v = self.q(x, y), self.k(x), self.v(x)\nreturn self.o(f(q, k, v))", "something else than one variable"),
    "by keyword": ("q, k, v = self.q(input=x), self.k(x), self.v(x)\nreturn self.o(f(q, k, v))", "something else than one variable"),
    "starred": ("q, k, v = self.q(*x), self.k(x), self.v(x)\nreturn self.o(f(q, k, v))", "something else than one variable"),
    "q and k only": ("q, k = self.q(x), self.k(x)\nreturn self.o(f(q, k))", "no three projections read one variable"),
    "nothing made of three": ("a, b, c = self.a(x), self.b(x), self.c(x)\nreturn a, b, c", "no projection is given what is computed"),
    "four without names": (
        "a, b, c, d = self.a(x), self.b(x), self.c(x), self.d(x)\nreturn self.e(f(a, b, c, d))",
        "`a`, `b`, `c`, `d` read one variable, and their names do not say",
    ),
    "low rank": (
        "q, kv, g = self.q_a_proj(x), self.kv_a_proj(x), self.g_proj(x)\nreturn self.o_proj(f(q, kv, g))",
        "their names do not say which are query, key and value",
    ),
    "another object": ("q, k, v = x.q(x), x.k(x), x.v(x)\nreturn self.o(f(q, k, v))", "no three projections read one variable"),
    "in a helper": ("q, k, v = self.helper(x)\nreturn self.o(f(q, k, v))", "no three projections read one variable"),
    "joint": ("q, k, v = self.qkv_proj(x).chunk(3)\nreturn self.o_proj(f(q, k, v))", "`qkv_proj` is one projection for q, k and v: no rule"),
    "joint, in one word": ("q, k, v = self.Wqkv(x).chunk(3)\nreturn self.o(f(q, k, v))", "`Wqkv` is one projection for q, k and v"),
    "joint, in full": ("q, k, v = self.query_key_value(x).chunk(3)\nreturn self.dense(f(q, k, v))", "`query_key_value` is one projection for q, k and v"),
    "joint, of gpt2": ("q, k, v = self.c_attn(x).chunk(3)\nreturn self.c_proj(f(q, k, v))", "`c_attn` is one projection for q, k and v"),
    "part of a name": ("q, k, v = self.qkvs_proj(x).chunk(3)\nreturn self.o(f(q, k, v))", "no three projections read one variable"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIONS)
def test_no_attention(name: str) -> None:
    body, reason = ATTENTIONS[name]
    why = derive_from_text(class_of(body), "Block", shared_input=False)
    assert isinstance(why, str)
    assert reason in why.partition("; no MLP: ")[0], why


MLPS = {
    "gate used twice": ("return self.d(A(self.g(x)) * self.g(x))", "`g` is called for more than one of gate, up and down"),
    "down is up": ("return self.d(A(self.g(x)) * self.d(x))", "more than one of gate, up and down"),
    "gate used elsewhere": ("z = self.g(y)\nreturn self.d(A(self.g(x)) * self.u(x)) + z", "`g` is called elsewhere, too"),
    "gate used in a loop": ("for z in y:\n    y = self.g(z)\nreturn self.d(A(self.g(x)) * self.u(x))", "`g` is called elsewhere, too"),
    "clamp of gate": ("return self.d(A(self.g(x).clamp(max=7)) * self.u(x))", "neither act(gate(x)) * up(x)"),
    "clamp of up": ("return self.d(A(self.g(x)) * self.u(x).clamp(-7, 7))", "neither act(gate(x)) * up(x)"),
    "clamp by function": ("return self.d(A(torch.clamp(self.g(x), max=7)) * self.u(x))", "neither act(gate(x)) * up(x)"),
    "dropout twice": ("return self.d(self.drop(self.drop(A(self.g(x)) * self.u(x))))", "`d` is given `self.drop("),
    "dropout of a factor": ("return self.d(self.drop(A(self.g(x))) * self.u(x))", "`d` is given `self.drop("),
    "norm": ("h = A(self.g(x)) * self.u(x)\nh = self.norm(h)\nreturn self.d(h)", "`d` is given `self.norm(h)`"),
    "cast": ("h = A(self.g(x)) * self.u(x)\nreturn self.d(h.to(x.dtype))", "`d` is given `h.to(x.dtype)`"),
    "multiplier": ("return self.d(A(self.g(x)) * self.u(x) * 2)", "neither act(gate(x)) * up(x)"),
    "sum": ("return self.d(A(self.g(x)) + self.u(x))", "neither act(gate(x)) * up(x)"),
    "two activations": ("return self.d(A(self.g(x)) * A(self.u(x)))", "neither act(gate(x)) * up(x)"),
    "up on another input": ("return self.d(A(self.g(x)) * self.u(y))", "`g` and `u` do not read one variable"),
    "no variable": ("return self.d(A(self.g(x + 1)) * self.u(x + 1))", "`g` and `u` do not read one variable"),
    "input changes": ("g = self.g(x)\nx = x + y\nreturn self.d(A(g) * self.u(x))", "`g` and `u` do not read one variable"),
    "changed in place": ("h = A(self.g(x)) * self.u(x)\nh *= 2\nreturn self.d(h)", "not computed in a straight line"),
    "branch": ("g = self.g(x)\nif flag:\n    g = A(g)\nreturn self.d(g * self.u(x))", "neither act(gate(x)) * up(x)"),
    "down in a branch": ("h = A(self.g(x)) * self.u(x)\nif flag:\n    h = self.d(h)\nreturn h", "are called in different branches"),
    "loop": ("h = A(self.g(x)) * self.u(x)\nfor z in y:\n    h = self.d(h)\nreturn h", "not computed in a straight line"),
    "condition": ("g = A(self.g(x)) if flag else x\nreturn self.d(g * self.u(x))", "neither act(gate(x)) * up(x)"),
    "nested function": ("def later():\n    return self.d(A(self.g(x)) * self.u(x))\nreturn later()", "no projection is given"),
    "lambda": ("return run(lambda: self.d(A(self.g(x)) * self.u(x)))", "no projection is given"),
    "halves of two": ("a, b = self.g(x).chunk(2, dim=-1)\nc, d = self.u(x).chunk(2, dim=-1)\nreturn self.d(A(a) * d)", "not the two halves"),
    "half with itself": ("a, b = self.g(x).chunk(2, dim=-1)\nreturn self.d(A(a) * a)", "not the two halves"),
    "three parts": ("a, b, c = self.g(x).chunk(3, dim=-1)\nreturn self.d(A(a) * b)", "neither act(gate(x)) * up(x)"),
    "other dimension": ("a, b = self.g(x).chunk(2, dim=1)\nreturn self.d(A(a) * b)", "neither act(gate(x)) * up(x)"),
    "ungated, dropout twice": ("return self.d(self.drop(self.drop(A(self.u(x)))))", "`d` is given `self.drop("),
    "ungated, dropout before the activation": ("return self.d(A(self.drop(self.u(x))))", "neither"),
    "ungated, no activation": ("return self.d(self.u(x))", "`d` is given `self.u(x)`"),
    "ungated, norm as activation": ("return self.d(self.norm(self.u(x)))", "`d` is given `self.norm(self.u(x))`"),
    "ungated, clamp": ("return self.d(A(self.u(x)).clamp(max=1))", "neither"),
    "ungated, one projection twice": ("return self.d(A(self.d(x)))", "`d` is called for both up and down"),
    "ungated, in place": ("h = A(self.u(x))\nh.mul_(2)\nreturn self.d(h)", "not computed in a straight line"),
    "ungated, part of it": ("h = A(self.u(x))\nh[0] = A(self.u(y))\nreturn self.d(h)", "not computed in a straight line"),
    "ungated, down in a branch": ("h = A(self.u(x))\nreturn self.d(h) if flag else h", "are called in different branches"),
}  # fmt: skip


@pytest.mark.parametrize("activation", ["self.act", "F.silu"])
@pytest.mark.parametrize("name", MLPS)
def test_no_mlp(name: str, activation: str) -> None:
    body, reason = MLPS[name]
    why = derive_from_text(class_of(body.replace("A(", f"{activation}(")), "Block", shared_input=False)
    assert isinstance(why, str)
    assert reason in why.partition("; no MLP: ")[2], why


FUNCTIONS = ["F.dropout", "F.layer_norm", "torch.softmax", "checkpoint", "F.linear"]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("body", ["return self.d(A(self.g(x)) * self.u(x))", "return self.d(A(self.u(x)))"])
def test_functions_that_are_no_activation(body: str, function: str) -> None:
    source = class_of(body.replace("A(", f"{function}("))
    assert isinstance(derive_from_text(source, "Block", shared_input=False), str)


@pytest.mark.parametrize(
    "call", ["ACT2FN[self.name]({})", "x.act({})", "act({})", "F.silu({}, True)", "F.gelu({}, approximate='tanh')"]
)
def test_calls_that_no_description_can_name(call: str) -> None:
    body = f"act = self.helper\nreturn self.d({call.format('self.g(x)')} * self.u(x))"
    assert isinstance(derive_from_text(class_of(body), "Block", shared_input=False), str)


@pytest.mark.parametrize(
    "body", ["return x", "return self.norm(x)", "return self.helper(x)", "return self.inner.q(x)", "pass"]
)
def test_nothing_to_describe(body: str) -> None:
    source = class_of(body) + "\n    def helper(self, x):\n        return x\n"
    assert derive_from_text(source, "Block") == NO_LINEAR


def test_a_static_forward_has_nothing_to_describe() -> None:
    source = "class Block:\n    @staticmethod\n    def forward():\n        return self.d(self.act(self.u(1)))\n"
    assert derive_from_text(source, "Block") == NO_LINEAR


def test_of_several_an_attention_comes_first_then_a_gated_mlp() -> None:
    ungated = "x = self.fc2(self.act(self.fc1(x)))\n"
    gated = "x = self.w2(F.silu(self.w1(x)) * self.w3(x))\n"
    attention = "x = self.o_proj(f(self.q_proj(x), self.k_proj(x), self.v_proj(x)))\n"
    assert isinstance(derive_from_text(class_of(ungated + gated + attention), "Block"), Attention)
    assert isinstance(derive_from_text(class_of(ungated + gated), "Block"), GatedMLP)
    assert derive_from_text(class_of(ungated + ungated.replace("fc", "gc")), "Block") == MLP("Block", activation="act")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Block(", "does not parse"),
        ("class Other:\n    pass", "class Block not found"),
        ("if x:\n    class Block: pass\nelse:\n    class Block: pass", "defined more than once, under conditions"),
        (class_of("x = " + "-" * 5000 + "x\nreturn self.a(x)"), "nested too deeply"),
    ],
    ids=["no Python", "no class", "two classes", "deep"],
)
def test_text_that_cannot_be_read(source: str, message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        derive_from_text(source, "Block")


def test_text_that_parses_and_is_too_deep_to_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: object) -> None:
        raise RecursionError

    monkeypatch.setattr("patchkit.derivation.derive.calls_in", fails)
    with pytest.raises(RewriteError, match="Block cannot be described"):
        derive_from_text(class_of("return self.a(x)"), "Block")
    why = derive(LlamaMLP)
    assert isinstance(why, str)
    assert "LlamaMLP cannot be described" in why


def test_a_class_without_forward() -> None:
    assert derive_from_text("class Block(Elsewhere):\n    pass\n", "Block") == (
        "neither it nor a base of it in the same text defines forward"
    )
