"""MLPs with and without a gate, whose activation is a module of theirs or a function, in every way to write them."""

from __future__ import annotations

import itertools
import textwrap

import pytest
from stand_ins import assert_same_behaviour

from patchkit.arch.spec import MLP, Block, GatedMLP
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules.registry import rule_named

ACTIVATIONS = {"module": (None, "act_fn"), "function": ("F.silu", None)}

GATED = {
    "one expression": "return self.down_proj({act}(self.gate_proj(x)) * self.up_proj(x))",
    "up first": "return self.down_proj(self.up_proj(x) * {act}(self.gate_proj(x)))",
    "temporaries": "gate = self.gate_proj(x)\nup = self.up_proj(x)\nh = {act}(gate) * up\nreturn self.down_proj(h)",
    "one name": "h = self.gate_proj(x)\nh = {act}(h)\nh = h * self.up_proj(x)\nh = self.down_proj(h)\nreturn h",
    "kept between": "h = {act}(self.gate_proj(x))\ns = y.shape\nreturn self.down_proj(h * self.up_proj(x)), s",
    "residual around": "return y + self.down_proj({act}(self.gate_proj(x)) * self.up_proj(x))",
    "dropout after": "h = {act}(self.gate_proj(x))\nh = self.down_proj(h * self.up_proj(x))\nreturn F.dropout(h)",
    "halves": "g, u = self.gate_up_proj(x).chunk(2, dim=-1)\nreturn self.down_proj({act}(g) * u)",
    "halves, up first": "u, g = self.gate_up_proj(x).chunk(2, dim=-1)\nreturn self.down_proj({act}(g) * u)",
}

UNGATED = {
    "one expression": "return self.fc2({act}(self.fc1(x)))",
    "expression within": "return self.fc2({act}(self.fc1(self.norm(x) + y)))",
    "one within another": "return self.fc2({act}(self.fc1(self.fc2({act}(self.fc1(x + y))))))",
    "temporaries": "up = self.fc1(x)\nhidden = {act}(up)\ndown = self.fc2(hidden)\nreturn down",
    "one name": "x = self.fc1(x)\nx = {act}(x)\nx = self.fc2(x)\nreturn x",
    "kept between": "h = {act}(self.fc1(x))\ns = y.shape\nreturn self.fc2(h), s",
    "residual around": "h = x\nz = self.fc1(x)\nz = {act}(z)\nz = self.fc2(z)\nreturn h + z",
    "dropout after": "h = self.fc2({act}(self.fc1(x)))\nh = F.dropout(h)\nreturn h + x",
    "dropout around": "h = {act}(self.fc1(x))\nreturn F.dropout(self.fc2(h)) + x",
    "calls around": "h = {act}(self.fc1(x))\nx = self.fc2(h)\nh = {act}(self.fc1(x))\nreturn self.norm(F.dropout(self.fc2(h)))",
    "twice": "x = self.fc2({act}(self.fc1(x)))\nx = self.fc2({act}(self.fc1(x + y)))\nreturn x",
    "in a branch": "if flag:\n    x = self.fc2({act}(self.fc1(x)))\nreturn x",
    "conditional": "return self.fc2({act}(self.fc1(x))) if flag else y",
}

TRAPS = {
    "dropout": "return {down}(F.dropout({act}({up}(x)){times}))",
    "clamp": "return {down}({act}(rotate({up}(x))){times})",
    "multiplier": "return {down}(2 * ({act}({up}(x)){times}))",
    "activation of two": "return {down}({act}({up}(x), y){times})",
    "hidden is used": "h = {act}({up}(x)){times}\nz = {down}(h)\nreturn z + h",
    "changed in place": "h = {act}({up}(x)){times}\nh *= 2\nreturn {down}(h)",
    "input changed": "h = {up}(x)\nx += y\nreturn {down}({act}(h){times})",
    "draw between": "h = {act}({up}(x)){times}\ny = F.dropout(y)\nreturn {down}(h) + y",
    "draw before, around": "h = {act}({up}(x)){times}\nreturn rotate(F.dropout(y) + {down}(h))",
    "branch": "h = {up}(x)\nif flag:\n    h = {act}(h)\nreturn {down}(h{times})",
}


def in_class(body: str, activation: str) -> str:
    function, _ = ACTIVATIONS[activation]
    method = textwrap.indent(body, " " * 8)
    return f"class Block:\n    def forward(self, x, y, flag):\n{method}\n".replace("{act}", function or "self.act_fn")


def block_of(kind: type[GatedMLP | MLP], body: str, activation: str) -> GatedMLP | MLP:
    function, _ = ACTIVATIONS[activation]
    words = {"activation_function": function, "activation": "act_fn"}
    if kind is GatedMLP and "gate_up_proj" in body:
        words["gate_up"] = "gate_up_proj"
    return kind("Block", **words)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("kind", "body"),
    [pytest.param(kind, body, id=f"{kind.__name__}-{name}") for kind, forms in ((GatedMLP, GATED), (MLP, UNGATED)) for name, body in forms.items()],
)  # fmt: skip
def test_a_form_is_rewritten_and_does_the_same(kind: type[GatedMLP | MLP], body: str, activation: str) -> None:
    source, block = in_class(body, activation), block_of(kind, body, activation)
    rewritten = rewrite(source, block)
    (name,) = {site.rule for site in rewritten.sites}
    assert (name, rewritten.skips) == ("gated-mlp" if kind is GatedMLP else "ungated-mlp", ())
    assert rewritten.source.count("self.apply_mlp(") == body.count("self.down_proj(") + body.count("self.fc2(")
    assert not any(f"self.{projection}(" in rewritten.source for projection in block.projections())
    assert ("F.silu" in rewritten.source) == (activation == "function")
    assert_same_behaviour(source, rewritten)
    arguments = [rule_named(site.rule).arguments(block, site) for site in rewritten.sites]
    assert all(one["activation"] == (block.activation_function or "act_fn") for one in arguments)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [GatedMLP, MLP])
@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_left(trap: str, kind: type[GatedMLP | MLP], activation: str) -> None:
    names = (
        ("self.down_proj", "self.gate_proj", " * self.up_proj(x)") if kind is GatedMLP else ("self.fc2", "self.fc1", "")
    )
    parts = dict(zip(("{down}", "{up}", "{times}"), names, strict=True))
    body = TRAPS[trap]
    for part, code in parts.items():
        body = body.replace(part, code)
    source = in_class(body, activation)
    rewritten = rewrite(source, block_of(kind, body, activation))
    assert {site.rule for site in rewritten.sites} == {"call-alone"}
    assert rewritten.skips
    assert_same_behaviour(source, rewritten)


FUNCTIONS = ("F.silu", "nn.functional.silu", "torch.nn.functional.gelu", "torch.relu", "silu")
BODY = "return self.{down}({act}(self.{up}(x)){times})"


def body_with(kind: type[GatedMLP | MLP], call: str) -> str:
    names = ("down_proj", "gate_proj", " * self.up_proj(x)") if kind is GatedMLP else ("fc2", "fc1", "")
    return BODY.format(down=names[0], up=names[1], times=names[2], act=call)


@pytest.mark.parametrize("kind", [GatedMLP, MLP])
@pytest.mark.parametrize(("written", "described"), [*itertools.product(FUNCTIONS, FUNCTIONS)])
def test_the_function_is_the_one_that_the_description_names(
    kind: type[GatedMLP | MLP], written: str, described: str
) -> None:
    block: Block = kind("Block", activation_function=described)
    rewritten = rewrite(in_class(body_with(kind, written), "module"), block)
    whole = {site.rule for site in rewritten.sites} - {"call-alone"}
    assert bool(whole) == (written == described)
    assert (f"self.apply_mlp(x, {described})" in rewritten.source) == (written == described)


@pytest.mark.parametrize("kind", [GatedMLP, MLP])
@pytest.mark.parametrize(
    "before",
    ["F = y", "for F in y: pass", "import torch.nn.functional as F", "def inner():\n    F = 1", "global F\nF = y"],
)
def test_a_local_name_is_no_function_of_the_module(kind: type[GatedMLP | MLP], before: str) -> None:
    body = f"{before}\n{body_with(kind, 'F.silu')}"
    rewritten = rewrite(in_class(body, "module"), kind("Block", activation_function="F.silu"))
    assert {site.rule for site in rewritten.sites} == {"call-alone"}


@pytest.mark.parametrize("kind", [GatedMLP, MLP])
@pytest.mark.parametrize("call", ["self.act_fn", "ACT2FN['silu']", "make()", "(lambda z: z)", "x.silu"])
def test_what_is_no_name_with_dots_is_no_function(kind: type[GatedMLP | MLP], call: str) -> None:
    rewritten = rewrite(in_class(body_with(kind, call), "module"), kind("Block", activation_function=call))
    assert {site.rule for site in rewritten.sites} == {"call-alone"}


@pytest.mark.parametrize("block", [GatedMLP("Block"), MLP("Block", "gate_proj", "down_proj", "act_fn")])
def test_a_rule_leaves_blocks_of_another_kind(block: Block) -> None:
    body = "return self.down_proj(self.act_fn(self.gate_proj(x)))"
    rewritten = rewrite(in_class(body, "module"), block)
    whole = {site.rule for site in rewritten.sites} - {"call-alone"}
    assert whole == ({"ungated-mlp"} if isinstance(block, MLP) else set())
