"""The words of a block's description: what parts it holds, what is looked up, and that it can be written down."""

from __future__ import annotations

import pytest

from patchkit.arch.spec import BLOCKS, MLP, PARTS, Attention, Block, GatedMLP, SharedInput, description
from patchkit.check.static.drift import described

CASES: list[tuple[Block, dict[str, tuple[str, ...]], tuple[str, ...], str]] = [
    (
        Attention("A"),
        {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",)},
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        "Attention()",
    ),
    (
        Attention("A", "q", "k", "v", None),
        {"qkv": ("q", "k", "v")},
        ("q", "k", "v"),
        "Attention(q='q', k='k', v='v', o=None)",
    ),
    (
        Attention("A", o=None, tower="vision"),
        {"qkv": ("q_proj", "k_proj", "v_proj")},
        ("q_proj", "k_proj", "v_proj"),
        "Attention(o=None)",
    ),
    (
        GatedMLP("A"),
        {"mlp": ("gate_proj", "up_proj", "down_proj")},
        ("gate_proj", "up_proj", "down_proj", "act_fn"),
        "GatedMLP()",
    ),
    (
        GatedMLP("A", activation_function="F.silu"),
        {"mlp": ("gate_proj", "up_proj", "down_proj")},
        ("gate_proj", "up_proj", "down_proj"),
        "GatedMLP(activation_function='F.silu')",
    ),
    (
        GatedMLP("A", dropout="dropout"),
        {"mlp": ("gate_proj", "up_proj", "down_proj")},
        ("gate_proj", "up_proj", "down_proj", "act_fn"),
        "GatedMLP(dropout='dropout')",
    ),
    (
        GatedMLP("A", gate_up="w12", down="w3"),
        {"mlp": ("w12", "w3")},
        ("w12", "w3", "act_fn"),
        "GatedMLP(down='w3', gate_up='w12')",
    ),
    (
        GatedMLP("A", limit="swiglu_limit"),
        {"mlp": ("gate_proj", "up_proj", "down_proj")},
        ("gate_proj", "up_proj", "down_proj", "act_fn"),
        "GatedMLP(limit='swiglu_limit')",
    ),
    (MLP("A"), {"mlp": ("fc1", "fc2")}, ("fc1", "fc2", "activation_fn"), "MLP()"),
    (MLP("A", "a", "b", "act"), {"mlp": ("a", "b")}, ("a", "b", "act"), "MLP(up='a', down='b', activation='act')"),
    (
        MLP("A", activation_function="F.gelu"),
        {"mlp": ("fc1", "fc2")},
        ("fc1", "fc2"),
        "MLP(activation_function='F.gelu')",
    ),
    (
        MLP("A", dropout_function="F.dropout"),
        {"mlp": ("fc1", "fc2")},
        ("fc1", "fc2", "activation_fn"),
        "MLP(dropout_function='F.dropout')",
    ),
    (SharedInput("A"), {"linear": ("k_proj", "v_proj")}, ("k_proj", "v_proj"), "SharedInput()"),
    (
        SharedInput("A", (("q", "k"), ("a", "b", "c"))),
        {"linear": ("q", "k", "a", "b", "c")},
        ("q", "k", "a", "b", "c"),
        "SharedInput(groups=(('q', 'k'), ('a', 'b', 'c')))",
    ),
    (
        SharedInput("A", (("a", "b"),), "vision"),
        {"linear": ("a", "b")},
        ("a", "b"),
        "SharedInput(groups=(('a', 'b'),))",
    ),
]


@pytest.mark.parametrize(("block", "parts", "modules", "said"), CASES, ids=lambda case: str(case)[:60])
def test_words(block: Block, parts: dict[str, tuple[str, ...]], modules: tuple[str, ...], said: str) -> None:
    assert block.parts == tuple(parts)
    for part in PARTS:
        assert block.projections(part) == parts.get(part, ())
    assert block.projections() == tuple(name for names in parts.values() for name in names)
    assert block.modules == modules
    assert description(block) == said


@pytest.mark.parametrize("block", [case[0] for case in CASES], ids=description)
def test_what_is_written_down_is_the_block(block: Block) -> None:
    assert eval(described(block), {kind.__name__: kind for kind in BLOCKS}) == block
