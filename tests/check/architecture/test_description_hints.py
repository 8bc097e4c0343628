"""What is said of a description that differs from the source: each word of each kind of block, and each mix-up."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from patchkit.arch.spec import MLP, Attention, Block, GatedMLP
from patchkit.check.architecture.hints import read_beside

TEXTS = {
    "attention": "q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)\nreturn self.o_proj(attend(q, k, v))",
    "unnamed": "a, b, c = self.a(x), self.b(x), self.c(x)\nreturn self.o(attend(a, b, c))",
    "joint": "q, k, v = self.qkv_proj(x).chunk(3)\nreturn self.o_proj(attend(q, k, v))",
    "gated": "return self.w2(self.act(self.w1(x)) * self.w3(x))",
    "function": "return self.w2(F.silu(self.w1(x)) * self.w3(x))",
    "halves": "gate, up = self.w13(x).chunk(2, dim=-1)\nreturn self.w2(self.act(gate) * up)",
    "ungated": "return self.fc2(self.act(self.fc1(x)))",
    "neither": "return self.w1(x) + self.w2(x)",
}

ATTENTION = Attention("Block")
GATED = GatedMLP("Block", "w1", "w3", "w2", activation="act")
FUNCTION = GatedMLP("Block", "w1", "w3", "w2", activation_function="F.silu")
HALVES = GatedMLP("Block", gate_up="w13", down="w2", activation="act")
UNGATED = MLP("Block", activation="act")

RIGHT: dict[str, Block] = {
    "attention": ATTENTION,
    "unnamed": Attention("Block", "a", "b", "c", "o"),
    "gated": GATED,
    "function": FUNCTION,
    "halves": HALVES,
    "ungated": UNGATED,
}


def read(text: str, block: Block):
    body = TEXTS[text].replace("\n", "\n        ")
    return read_beside(block, f"class Block:\n    def forward(self, x):\n        {body}\n", "Block", "m.py")


@pytest.mark.parametrize("text", RIGHT)
def test_nothing_is_said_of_what_is_right(text: str) -> None:
    reading = read(text, RIGHT[text])
    assert (reading.derived, reading.said, reading.swapped) == (RIGHT[text], (), False)
    assert read(text, replace(RIGHT[text], tower="vision")).said == (), "no source says where it stands"


def words_of(block: Block) -> list[str]:
    left_out = {"class_name", "tower", "activation_function", *({"gate", "up"} if block == HALVES else ())}
    left_out |= {"activation"} if block == FUNCTION else {"gate_up"} if block != HALVES else set()
    return [one.name for one in fields(block) if one.name not in left_out and getattr(block, one.name)]


@pytest.mark.parametrize(("text", "word"), [(text, word) for text in RIGHT for word in words_of(RIGHT[text])])
def test_each_word_that_differs_is_named(text: str, word: str) -> None:
    reading = read(text, replace(RIGHT[text], **{word: "other"}))
    assert reading.said == (f"{word}: 'other' is described, the source says {getattr(RIGHT[text], word)!r}",)
    assert not reading.swapped


def test_the_words_that_are_tried() -> None:
    assert [len(words_of(block)) for block in RIGHT.values()] == [4, 4, 4, 3, 3, 3]


SAID = {
    "gate and up": ("gated", replace(GATED, gate="w3", up="w1"), "gate and up look swapped: the source gives `w1` to self.act, and not `w3`"),
    "of a function": ("function", replace(FUNCTION, gate="w3", up="w1"), "the source gives `w1` to F.silu, and not `w3`"),
    "q and k": ("attention", replace(ATTENTION, q="k_proj", k="q_proj"), "q and k look swapped: q is said to be `k_proj`, k is said to be `q_proj`"),
    "all three": ("attention", replace(ATTENTION, q="k_proj", k="v_proj", v="q_proj"), "q and k and v look swapped"),
    "a function, not a module": ("function", replace(FUNCTION, activation_function=None), "activation_function: nothing is described, the source says 'F.silu'"),
    "a module, not a function": ("gated", replace(GATED, activation_function="F.silu"), "activation_function: 'F.silu' is described, the source has none"),
    "no output projection": ("attention", replace(ATTENTION, o=None), "o: nothing is described, the source says 'o_proj'"),
    "another kind": ("gated", MLP("Block", "w1", "w2"), "it is described as MLP, and its source reads as GatedMLP(gate='w1', up='w3', down='w2', activation='act')"),
    "an attention for an MLP": ("ungated", ATTENTION, "it is described as Attention, and its source reads as MLP(activation='act')"),
    "one projection for three": ("joint", ATTENTION, "`qkv_proj` is one projection for q, k and v: no rule of qkv; leave Block out of the architecture: its layers are patched one by one"),
    "neither": ("neither", GATED, "its source says no GatedMLP: no attention: "),
}  # fmt: skip


@pytest.mark.parametrize(("text", "block", "said"), SAID.values(), ids=SAID)
def test_what_is_said(text: str, block: Block, said: str) -> None:
    reading = read(text, block)
    assert any(line.startswith(said) or said in line for line in reading.said), reading.said
    assert reading.swapped == ("swapped" in reading.said[0])


def test_order_alone_says_nothing_of_roles() -> None:
    """Where no name tells them apart, the author knows better."""
    assert not read("unnamed", Attention("Block", "b", "a", "c", "o")).swapped


def test_a_text_that_does_not_parse_is_said() -> None:
    reading = read_beside(ATTENTION, "class Block:\n    def", "Block", "m.py")
    assert reading.derived is None
    assert "m.py" in reading.said[0]
