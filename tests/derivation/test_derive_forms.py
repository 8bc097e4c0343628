"""Every form of an attention and of an MLP, under any names: what is derived, and that the rewriter takes it whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from class_texts import class_of

from patchkit.arch.spec import MLP, Attention, Block, GatedMLP
from patchkit.derivation.derive import derive_from_text
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules.registry import rule_named

ATTENTION_NAMES = {
    "usual": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "out_proj": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "bert": ("query", "key", "value", "dense"),
    "letters": ("q", "k", "v", "o"),
    "w": ("wq", "wk", "wv", "wo"),
    "to": ("to_q", "to_k", "to_v", "to_out"),
    "linear": ("linear_q", "linear_k", "linear_v", "linear_out"),
    "nothing said": ("alpha", "beta", "gamma", "delta"),
}

ATTENTIONS = {
    "steps": "q = self.Q(x)\nk = self.K(x)\nv = self.V(x)\nh = attend(q, k, v)\nreturn self.O(h)",
    "one expression": "return self.O(attend(self.Q(x), self.K(x), self.V(x)))",
    "one assignment": "q, k, v = self.Q(x), self.K(x), self.V(x)\nh, w = attend(q, k, v)\nreturn self.O(h), w",
    "views": "q = self.Q(x).view(2, 4).transpose(1, 2)\nk = self.K(x).view(2, 4)\nv = self.V(x).view(2, 4)\n"
    "h = softmax(q @ k.T) @ v\nh = h.reshape(2, -1).contiguous()\nh = self.O(h)\nreturn h, None",
    "norms": "q = self.norm(self.Q(x))\nk = self.norm(self.K(x))\nv = self.V(x)\nreturn self.O(attend(q, k, v))",
    "input computed": "h = self.norm(x)\nq = self.Q(h)\nk = self.K(h)\nv = self.V(h)\nreturn self.O(attend(q, k, v))",
    "in a branch": "if flag:\n    q, k, v = self.Q(x), self.K(x), self.V(x)\nelse:\n    raise ValueError\nreturn self.O(attend(q, k, v))",
    "in a list": "q, k, v = self.Q(x), self.K(x), self.V(x)\nh = []\nfor i in y:\n    h.append(attend(q[i], k[i], v[i]))\nreturn self.O(cat(h))",
    "in place": "q, k, v = self.Q(x), self.K(x), self.V(x)\nh = y.clone()\nh[0] = attend(q, k, v)\nreturn self.O(h)",
    "in a loop": "q, k, v = self.Q(x), self.K(x), self.V(x)\nh = 0\nfor i in y:\n    h = h + attend(q[i], k[i], v[i])\nreturn self.O(h)",
    "residual and dropout": "q, k, v = self.Q(x), self.K(x), self.V(x)\nh = self.O(attend(q, k, v))\nreturn x + self.drop(h)",
    "written out": "q = self.Q(x)\nk = self.K(x)\nv = self.V(x)\nh = attend(q, k, v)\nh = self.O(h) if flag else self.O(h + y)\nreturn h",
}  # fmt: skip


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("form", ATTENTIONS)
@pytest.mark.parametrize("names", ATTENTION_NAMES)
def test_attention(names: str, form: str, init: bool) -> None:
    q, k, v, o = ATTENTION_NAMES[names]
    body = ATTENTIONS[form].replace("self.Q", f"self.{q}").replace("self.K", f"self.{k}")
    source = class_of(body.replace("self.V", f"self.{v}").replace("self.O", f"self.{o}"), init=init)
    expected = Attention("Block", q=q, k=k, v=v, o=o)
    assert derive_from_text(source, "Block") == expected
    if init and form != "one expression":  # the rewriter moves nothing to before a call that stands around it
        assert_whole(source, expected)


@pytest.mark.parametrize("order", ["QKV", "QVK", "KQV", "KVQ", "VQK", "VKQ"])
@pytest.mark.parametrize("names", ATTENTION_NAMES)
def test_names_say_which_is_which_and_without_them_the_order_does(names: str, order: str) -> None:
    by_role = dict(zip("QKV", ATTENTION_NAMES[names], strict=False))
    a, b, c = (by_role[role] for role in order)
    o = ATTENTION_NAMES[names][3]
    body = f"a, b, c = self.{a}(x), self.{b}(x), self.{c}(x)\nreturn self.{o}(attend(a, b, c))"
    q, k, v = (a, b, c) if names == "nothing said" else ATTENTION_NAMES[names][:3]
    assert derive_from_text(class_of(body), "Block") == Attention("Block", q=q, k=k, v=v, o=o)


@pytest.mark.parametrize("others", [("gate",), ("gate", "beta_proj"), ("rate",)])
@pytest.mark.parametrize("names", sorted(ATTENTION_NAMES.keys() - {"nothing said"}))
def test_names_say_which_of_more_than_three(names: str, others: tuple[str, ...]) -> None:
    q, k, v, o = ATTENTION_NAMES[names]
    more = "".join(f"{other} = self.{other}(x)\n" for other in others)
    body = f"{more}q, k, v = self.{q}(x), self.{k}(x), self.{v}(x)\nreturn self.{o}(attend(q, k, v) * {others[0]})"
    assert derive_from_text(class_of(body), "Block") == Attention("Block", q=q, k=k, v=v, o=o)


@pytest.mark.parametrize("names", sorted(ATTENTION_NAMES.keys() - {"nothing said"}))
def test_an_output_projection_may_stand_in_another_class(names: str) -> None:
    q, k, v, _ = ATTENTION_NAMES[names]
    source = class_of(f"q, k, v = self.{q}(x), self.{k}(x), self.{v}(x)\nreturn attend(q, k, v)")
    expected = Attention("Block", q=q, k=k, v=v, o=None)
    assert derive_from_text(source, "Block") == expected
    assert expected.parts == ("qkv",)
    assert_whole(source, expected)


GATED_NAMES = {
    "usual": ("gate_proj", "up_proj", "down_proj"),
    "w": ("w1", "w3", "w2"),
    "fc": ("fc11", "fc12", "fc2"),
    "wi": ("wi_0", "wi_1", "wo"),
    "nothing said": ("alpha", "beta", "gamma"),
}
ACTIVATIONS = {
    "table": ("self.act", {"activation": "act"}),
    "module": ("self.act_fn", {}),
    "made": ("self.activation", {"activation": "activation"}),
    "F.silu": ("F.silu", {"activation_function": "F.silu"}),
    "functional": ("torch.nn.functional.gelu", {"activation_function": "torch.nn.functional.gelu"}),
    "own function": ("squared_relu", {"activation_function": "squared_relu"}),
}
GATED = {
    "one expression": "return self.D(A(self.G(x)) * self.U(x))",
    "up first": "return self.D(self.U(x) * A(self.G(x)))",
    "steps": "g = self.G(x)\nu = self.U(x)\ng = A(g)\nh = g * u\nh = self.D(h)\nreturn h",
    "pair": "g, u = self.G(x), self.U(x)\nreturn self.D(A(g) * u)",
    "one name": "h = self.G(x)\nh = A(h)\nh = h * self.U(x)\nreturn self.D(h)",
    "residual and dropout": "h = self.norm(x)\nh = self.D(A(self.G(h)) * self.U(h))\nreturn x + self.drop(h)",
    "two branches": "if flag:\n    return self.D(A(self.G(x)) * self.U(x))\nreturn self.D(A(self.G(x)) * self.U(x)) + y",
}


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("form", GATED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("names", GATED_NAMES)
def test_gated_mlp(names: str, activation: str, form: str, init: bool) -> None:
    gate, up, down = GATED_NAMES[names]
    code, words = ACTIVATIONS[activation]
    body = GATED[form].replace("A(", f"{code}(").replace("self.G", f"self.{gate}")
    source = class_of(body.replace("self.U", f"self.{up}").replace("self.D", f"self.{down}"), init=init)
    expected = GatedMLP("Block", gate=gate, up=up, down=down, **words)
    assert derive_from_text(source, "Block") == expected
    if init:  # the rewriter reads forward alone
        assert_whole(source, expected)


JOINT = {
    "unpacked": "g, u = self.J(x).chunk(2, dim=-1)\nreturn self.D(A(g) * u)",
    "up first": "u, g = self.J(x).chunk(2, dim=-1)\nreturn self.D(A(g) * u)",
    "function": "g, u = torch.chunk(self.J(x), 2, dim=-1)\nreturn self.D(u * A(g))",
    "positional": "h = self.J(x)\ng, u = h.chunk(2, -1)\nreturn self.D(u * A(g))",
    "subscripts": "h = self.J(x).chunk(2, dim=-1)\nreturn self.D(A(h[0]) * h[1])",
}


@pytest.mark.parametrize("form", JOINT)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("names", [("gate_up_proj", "down_proj"), ("w12", "w3"), ("input_linear", "output_linear")])
def test_one_projection_for_gate_and_up(names: tuple[str, str], activation: str, form: str) -> None:
    joint, down = names
    code, words = ACTIVATIONS[activation]
    body = JOINT[form].replace("A(", f"{code}(").replace("self.J", f"self.{joint}").replace("self.D", f"self.{down}")
    source, expected = class_of(body), GatedMLP("Block", gate_up=joint, down=down, **words)
    assert derive_from_text(source, "Block") == expected
    assert_whole(source, expected)


UNGATED_NAMES = [
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("up_proj", "down_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("a", "b"),
]
UNGATED = {
    "one expression": "return self.D(A(self.U(x)))",
    "input computed": "return x + self.D(A(self.U(self.norm(x))))",
    "steps": "x = self.U(x)\nx = A(x)\nx = self.D(x)\nreturn x",
    "dropout after": "h = A(self.U(x))\nh = self.D(h)\nh = self.drop(h)\nreturn h + x",
    "in a layer": "h = x\nx = self.norm(x)\nx = self.U(x)\nx = A(x)\nx = self.D(x)\nx = F.dropout(x, p=0.1)\nreturn h + x",
    "twice": "x = self.D(A(self.U(x)))\nreturn self.D(A(self.U(x + y)))",
}


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("form", UNGATED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("names", UNGATED_NAMES, ids="-".join)
def test_ungated_mlp(names: tuple[str, str], activation: str, form: str, init: bool) -> None:
    up, down = names
    code, words = ACTIVATIONS[activation]
    body = UNGATED[form].replace("A(", f"{code}(").replace("self.U", f"self.{up}").replace("self.D", f"self.{down}")
    source = class_of(body, init=init)
    expected = MLP("Block", up=up, down=down, **{"activation": "act_fn", **words})
    if "activation_function" in words:
        expected = MLP("Block", up=up, down=down, **words)
    assert derive_from_text(source, "Block") == expected
    if init:
        assert_whole(source, expected)


DROPOUT = {
    "self.drop({})": {"dropout": "drop"},
    "self.dropout({})": {"dropout": "dropout"},
    "F.dropout({})": {"dropout_function": "F.dropout"},
    "nn.functional.dropout({}, p=self.p, training=self.training)": {"dropout_function": "nn.functional.dropout"},
}
HIDDEN = {
    "gated": ("self.act_fn(self.gate_proj(x)) * self.up_proj(x)", GatedMLP("Block")),
    "ungated": ("self.act_fn(self.gate_proj(x))", MLP("Block", "gate_proj", "down_proj", "act_fn")),
}


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("call", DROPOUT)
@pytest.mark.parametrize("hidden", ["gated", "ungated"])
def test_dropout_before_down(hidden: str, call: str, steps: bool) -> None:
    code, block = HIDDEN[hidden]
    body = f"h = {code}\nh = {call.format('h')}\nreturn self.down_proj(h)"
    if not steps:
        body = f"return self.down_proj({call.format(code)})"
    expected = replace(block, **DROPOUT[call])
    assert derive_from_text(class_of(body), "Block") == expected
    assert_whole(class_of(body), expected)


@pytest.mark.parametrize("call", ["F.dropout(*{})", "self.drop({}, 0.5)", "F.alpha_dropout({})", "self.norm({})"])
@pytest.mark.parametrize("hidden", ["gated", "ungated"])
def test_what_is_no_dropout_before_down(hidden: str, call: str) -> None:
    body = f"return self.down_proj({call.format(HIDDEN[hidden][0])})"
    assert isinstance(derive_from_text(class_of(body), "Block", shared_input=False), str)


LIMITS = {
    "in the assignments": "g = self.G(x).clamp(max=self.limit)\nu = self.U(x).clamp(min=-self.limit, max=self.limit)",
    "in steps": "g = self.G(x)\nu = self.U(x)\ng = g.clamp(min=None, max=self.limit)\n"
    "u = u.clamp(max=self.limit, min=-self.limit)",
    "of a joint one": "g, u = self.G(x).chunk(2, dim=-1)\ng = g.clamp(max=self.limit)\n"
    "u = u.clamp(min=-self.limit, max=self.limit)",
}


@pytest.mark.parametrize("product", ["A(g) * u", "u * A(g)"])
@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize("activation", ["self.act", "F.silu"])
def test_a_limit_of_gate_and_up(form: str, product: str, activation: str) -> None:
    body = f"{LIMITS[form]}\nreturn self.D({product})".replace("self.G", "self.w1").replace("self.U", "self.w3")
    body = body.replace("self.D", "self.w2").replace("A(", f"{activation}(")
    words = {"activation": "act"} if activation == "self.act" else {"activation_function": activation}
    names = {"gate_up": "w1"} if "joint" in form else {"gate": "w1", "up": "w3"}
    expected = GatedMLP("Block", down="w2", limit="limit", **names, **words)
    assert derive_from_text(class_of(body), "Block") == expected
    assert_whole(class_of(body), expected)


@pytest.mark.parametrize(
    ("gate", "up"),
    [
        ("max=self.limit", None),
        (None, "min=-self.limit, max=self.limit"),
        ("max=self.limit", "min=-self.other, max=self.other"),
        ("max=self.limit", "min=-self.limit, max=self.other"),
        ("max=self.limit", "min=self.limit, max=self.limit"),
        ("max=self.limit", "max=self.limit"),
        ("min=-self.limit, max=self.limit", "min=-self.limit, max=self.limit"),
        ("max=7", "min=-7, max=7"),
        ("max=limit", "min=-limit, max=limit"),
        ("max=self.limit, out=y", "min=-self.limit, max=self.limit"),
        ("None, self.limit", "-self.limit, self.limit"),
    ],
)
def test_what_is_no_limit_of_gate_and_up(gate: str | None, up: str | None) -> None:
    g, u = (
        f"self.{name}(x)" + ("" if ends is None else f".clamp({ends})") for name, ends in (("w1", gate), ("w3", up))
    )
    source = class_of(f"return self.w2(self.act({g}) * {u})")
    assert isinstance(derive_from_text(source, "Block", shared_input=False), str)
    rewritten = rewrite(source, GatedMLP("Block", "w1", "w3", "w2", activation="act", limit="limit"))
    assert not any(rule_named(site.rule).whole for site in rewritten.sites)


def test_a_limit_of_an_ungated_mlp_is_none_that_is_known() -> None:
    source = class_of("return self.b(self.act(self.a(x).clamp(max=self.limit)))")
    assert isinstance(derive_from_text(source, "Block", shared_input=False), str)


LINEAR = [
    "nn.Linear(8, 8)", "torch.nn.Linear(8, 8, bias=False)", "FalconLinear(8, 8)", "Conv1D(8, 8)", "make_linear(8, 8)",
    "nn.Linear(8, 8) if config.wide else nn.Identity()", "None if config.narrow else nn.Linear(8, 8)", "Mine(8, 8)",
]  # fmt: skip
NOT_LINEAR = [
    "nn.Conv1d(8, 8, 1)",
    "nn.Embedding(8, 8)",
    "nn.LayerNorm(8)",
    "Attention(config)",
    "KimiLinearMLP(config)",
]
MLPS = "return self.b(self.act(self.a(x)))"
OWN = "class Mine(nn.Linear):\n    pass\n\n\n"


@pytest.mark.parametrize("linear", [*LINEAR, *NOT_LINEAR])
def test_what_init_makes_counts(linear: str) -> None:
    derived = derive_from_text(OWN + class_of(MLPS, linear=linear), "Block")
    assert (derived == MLP("Block", "a", "b", "act")) == (linear in LINEAR)
    assert isinstance(derived, str) == (linear in NOT_LINEAR)


@pytest.mark.parametrize("init_in", ["Base", "Middle", "Block"])
@pytest.mark.parametrize("forward_in", ["Base", "Middle", "Block"])
def test_bases_in_the_same_text_are_read(init_in: str, forward_in: str) -> None:
    """With layers that are no projections there is nothing to describe, and that is known only from ``__init__``."""
    text = class_of(MLPS, linear="nn.Conv1d(8, 8, 1)")
    init, forward = text[: text.index("    def forward")], text[text.index("    def forward") :]
    source, base = "", "nn.Module"
    for name in ("Base", "Middle", "Block"):
        body = (init.split("\n", 1)[1] if init_in == name else "") + (
            forward if forward_in == name else "    size = 8\n"
        )
        source += f"class {name}({base}):\n{body}\n\n"
        base = name
    assert derive_from_text(source, "Block") == "it calls no linear layer"
    assert derive_from_text(source.replace("nn.Conv1d(8, 8, 1)", "nn.Linear(8, 8)"), "Block") == MLP(
        "Block", "a", "b", "act"
    )


def assert_whole(source: str, block: Block) -> None:
    rewritten = rewrite(source, block)
    assert all(rule_named(site.rule).whole for site in rewritten.sites)
    assert {site.part for site in rewritten.sites} == set(block.parts)
    assert rewritten.skips == ()
