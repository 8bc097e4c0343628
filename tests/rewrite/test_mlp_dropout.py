"""Dropout between the activation of an MLP and its down projection: a module of the object, or a function."""

from __future__ import annotations

import textwrap

import pytest
from stand_ins import assert_same_behaviour

from patchkit.arch.spec import MLP, GatedMLP
from patchkit.rewrite.rewriter import rewrite

HIDDEN = {GatedMLP: "self.act_fn(self.gate_proj(x)) * self.up_proj(x)", MLP: "self.act_fn(self.fc1(x))"}
DOWN = {GatedMLP: "self.down_proj", MLP: "self.fc2"}
AROUND = {
    "one expression": "return {down}({drop})",
    "temporaries": "h = {hidden}\nh = {drop h}\nreturn {down}(h)",
    "names of their own": "a = {hidden}\nb = {drop a}\nc = {down}(b)\nreturn c",
    "in a branch": "if flag:\n    h = {hidden}\n    y = {down}({drop h})\nreturn y",
    "kept between": "h = {drop}\ns = y.shape\nreturn {down}(h), s",
    "dropout of the result, too": "h = {drop}\nh = {down}(h)\nreturn F.dropout(h)",
    "twice, one without": "x = {down}({drop})\nreturn {down}({hidden})",
}
CALLS = {  # how it is written: the words of the description, and what the new call is given
    "self.dropout({})": ({"dropout": "dropout"}, "dropout=self.dropout"),
    "F.dropout({})": ({"dropout_function": "F.dropout"}, "dropout=F.dropout"),
    "F.dropout({}, p=self.activation_dropout, training=self.training)": (
        {"dropout_function": "F.dropout"},
        "dropout=F.dropout, p=self.activation_dropout, training=self.training",
    ),
    "F.dropout({}, self.activation_dropout, self.training)": (
        {"dropout_function": "F.dropout"},
        "dropout=F.dropout, p=self.activation_dropout, training=self.training",
    ),
    "F.dropout({}, training=True, p=0.25)": (
        {"dropout_function": "F.dropout"},
        "dropout=F.dropout, training=True, p=0.25",
    ),
}


def in_class(body: str) -> str:
    return f"class Block:\n    def forward(self, x, y, flag):\n{textwrap.indent(body, ' ' * 8)}\n"


def written(kind: type[GatedMLP | MLP], around: str, call: str) -> str:
    body = around.replace("{drop}", call.format(HIDDEN[kind]))
    for name in "hab":
        body = body.replace(f"{{drop {name}}}", call.format(name))
    return in_class(body.replace("{hidden}", HIDDEN[kind]).replace("{down}", DOWN[kind]))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", [GatedMLP, MLP])
def test_it_becomes_an_argument_and_draws_the_same(kind: type[GatedMLP | MLP], around: str, call: str) -> None:
    source, (words, given) = written(kind, AROUND[around], call), CALLS[call]
    rewritten = rewrite(source, kind("Block", activation="act_fn", **words))
    assert not rewritten.skips
    assert f"self.apply_mlp(x, {given})" in rewritten.source
    assert ("self.apply_mlp(x)" in rewritten.source) == ("without" in around)
    assert "act_fn" not in rewritten.source
    assert_same_behaviour(source, rewritten)


@pytest.mark.parametrize("kind", [GatedMLP, MLP])
def test_beside_an_activation_that_is_a_function(kind: type[GatedMLP | MLP]) -> None:
    source = written(kind, AROUND["temporaries"], "self.dropout({})").replace("self.act_fn", "F.silu")
    rewritten = rewrite(source, kind("Block", activation_function="F.silu", dropout="dropout"))
    assert "self.apply_mlp(x, F.silu, dropout=self.dropout)" in rewritten.source
    assert_same_behaviour(source, rewritten)


LEFT = {
    "not described": ("F.dropout({})", {}),
    "another module": ("self.q_norm({})", {"dropout": "dropout"}),
    "another function": ("rotate({})", {"dropout_function": "F.dropout"}),
    "a module, not the function": ("self.dropout({})", {"dropout_function": "self.dropout"}),
    "in place": ("F.dropout({}, 0.1, True, False)", {"dropout_function": "F.dropout"}),
    "by name in place": ("F.dropout({}, inplace=True)", {"dropout_function": "F.dropout"}),
    "a variable's probability": ("F.dropout({}, p=y)", {"dropout_function": "F.dropout"}),
    "a computed probability": ("F.dropout({}, p=self.scale * 2)", {"dropout_function": "F.dropout"}),
    "a call's probability": ("F.dropout({}, p=self.norm(y))", {"dropout_function": "F.dropout"}),
    "unpacked": ("F.dropout({}, *(0.1,))", {"dropout_function": "F.dropout"}),
    "unpacked by name": ("F.dropout({}, **dict(p=0.1))", {"dropout_function": "F.dropout"}),
    "its input by name": ("F.dropout(p=0.1, input={})", {"dropout_function": "F.dropout"}),
    "a module's second argument": ("self.dropout({}, 0.5)", {"dropout": "dropout"}),
    "no argument": ("F.dropout()", {"dropout_function": "F.dropout"}),
    "twice": ("F.dropout(F.dropout({}))", {"dropout_function": "F.dropout"}),
}


@pytest.mark.parametrize("around", ["one expression", "temporaries"])
@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("kind", [GatedMLP, MLP])
def test_anything_else_is_left(kind: type[GatedMLP | MLP], left: str, around: str) -> None:
    call, words = LEFT[left]
    source = written(kind, AROUND[around], call)
    rewritten = rewrite(source, kind("Block", activation="act_fn", **words))
    assert {site.rule for site in rewritten.sites} == {"call-alone"}
    assert rewritten.skips
    assert_same_behaviour(source, rewritten)


SEEN = {
    "the module is local": ("F = self.random\nreturn {down}(F.dropout({hidden}))", {"dropout_function": "F.dropout"}),
    "its result is used": ("h = F.dropout({hidden})\nreturn {down}(h) + h", {"dropout_function": "F.dropout"}),
    "a draw between": ("h = {drop}\ny = F.dropout(y)\nreturn {down}(h) + y", {"dropout": "dropout"}),
    "its probability changes": (
        "h = F.dropout({hidden}, p=self.scale)\nself.scale = 7\nreturn {down}(h)",
        {"dropout_function": "F.dropout"},
    ),
    "changed in place": ("h = {drop}\nh *= 2\nreturn {down}(h)", {"dropout": "dropout"}),
}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("kind", [GatedMLP, MLP])
def test_what_could_see_that_it_waits(kind: type[GatedMLP | MLP], seen: str) -> None:
    around, words = SEEN[seen]
    source = written(kind, around, "self.dropout({})")
    rewritten = rewrite(source, kind("Block", activation="act_fn", **words))
    assert {site.rule for site in rewritten.sites} == {"call-alone"}
    assert_same_behaviour(source, rewritten)
