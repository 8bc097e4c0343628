"""The rule for layers of one input: the names of its variables, several groups, and what is in their way."""

from __future__ import annotations

import textwrap

import pytest
from stand_ins import assert_same_behaviour

from patchkit.arch.spec import SharedInput
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.sites import Rewritten


def rewritten(body: str, *groups: tuple[str, ...]) -> Rewritten:
    source = f"class Block:\n    def forward(self, x, y, flag=True):\n{textwrap.indent(body, ' ' * 8)}\n"
    return rewrite(source, SharedInput("Block", groups))


NAMES = {
    ("k_proj", "v_proj"): "k, v",
    ("in_proj_qkvz", "in_proj_ba"): "in_qkvz, in_ba",
    ("q_a_proj", "kv_a_proj_with_mqa"): "q_a, kv_a_with_mqa",
    ("linear_k", "linear_v"): "k, v",
    ("to_q", "to_kv"): "q, kv",
    ("key", "value"): "key, value",
    ("k_lin", "v_lin"): "k_lin, v_lin",
    ("key_projection", "value_projection"): "key, value",
    ("input_layer", "residual_layer"): "input, residual",
    ("proj_up_gate", "proj_up"): "up_gate, up",
    ("w1", "w3"): "w1, w3",
    # Where nothing else is left of a name, or the same is left of two, or a word of Python, the names themselves are.
    ("proj", "gate_proj"): "proj, gate_proj",
    ("k_proj", "to_k"): "k_proj, to_k",
    ("in_proj", "out_proj"): "in_proj, out_proj",
}


@pytest.mark.parametrize("group", NAMES, ids=" ".join)
def test_variables_are_called_after_the_layers(group: tuple[str, str]) -> None:
    first, second = group
    found = rewritten(f"return f(self.{first}(x), self.{second}(x))", group)
    line = f"{NAMES[group]} = self.apply_shared(x, self.{first}, self.{second})"
    assert found.method_source.splitlines()[1:] == [f"        {line}", f"        return f({NAMES[group]})"]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("k = y", "k_2, v_2 = "),  # a variable of the method
        ("k = y\nk_2 = v_2 = k", "k_3, v_3 = "),
        ("y = v(y)", "k_2, v_2 = "),  # a global that it reads
        ("def later():\n    k = 1\n    return k", "k_2, v_2 = "),  # in a nested function
        ("y = y.k + f(v=1)", "k, v = "),  # attributes and keywords are no variables
    ],
)
def test_variables_occur_nowhere_else(before: str, expected: str) -> None:
    found = rewritten(f"{before}\nreturn f(self.k_proj(x), self.v_proj(x))", ("k_proj", "v_proj"))
    assert f"        {expected}self.apply_shared(" in found.method_source


GROUPS = {
    "one after the other": ("a = self.q_proj(x) * self.k_proj(x)\nreturn a + self.v_proj(y) * self.o_proj(y)", 2),
    "of one input": ("a = self.q_proj(x) * self.k_proj(x)\nreturn a + self.v_proj(x) * self.o_proj(x)", 2),
    "one in the other": ("a = self.q_proj(x)\nb = self.v_proj(y) * self.o_proj(y)\nreturn a + b * self.k_proj(x)", 1),
    "crossed": ("a = self.q_proj(x)\nb = self.v_proj(y)\nreturn a * self.k_proj(x) + b * self.o_proj(y)", 0),
    "in one expression": ("return self.q_proj(x) * self.k_proj(x) + self.v_proj(y) * self.o_proj(y)", 0),
    "in branches": (
        "if flag:\n    a = self.q_proj(x) * self.k_proj(x)\nelse:\n    a = self.v_proj(x) * self.o_proj(x)\nreturn a",
        2,
    ),
    "one is none": ("a = self.q_proj(x) * self.k_proj(y)\nreturn a + self.v_proj(y) * self.o_proj(y)", 1),
    "of what the other gives": ("x = self.q_proj(x) * self.k_proj(x)\nreturn self.v_proj(x) + self.o_proj(x)", 2),
}


@pytest.mark.parametrize("form", GROUPS)
def test_two_groups(form: str) -> None:
    body, count = GROUPS[form]
    found = rewritten(body, ("q_proj", "k_proj"), ("v_proj", "o_proj"))
    assert len(found.sites) == count
    assert len(found.skips) == 2 - count
    source = f"class Block:\n    def forward(self, x, y, flag=True):\n{textwrap.indent(body, ' ' * 8)}\n"
    assert_same_behaviour(source, found)


def test_a_layer_of_another_group_is_in_the_way_whatever_it_is_called() -> None:
    """A call of ``self.scale`` is otherwise taken for one that draws nothing."""
    body = "a = self.k_proj(x)\nb = self.scale(y) + self.shape(y)\nreturn a + b + self.v_proj(x)"
    alone = rewritten(body, ("k_proj", "v_proj"))
    assert [site.calls for site in alone.sites] == [("k_proj", "v_proj")]
    both = rewritten(body, ("k_proj", "v_proj"), ("scale", "shape"))
    assert [site.calls for site in both.sites] == [("scale", "shape")]
    assert "`self.scale(y)` stands between and is a layer of another group" in both.skips[0].reason


def test_what_a_group_is_moved_past_is_told() -> None:
    found = rewritten("a = self.k_norm(self.k_proj(x))\nb = f(y)\nreturn a + b + self.v_proj(x)", ("k_proj", "v_proj"))
    assert found.sites[0].passed_over == ("self.k_norm()", "f()")


def test_a_group_of_which_nothing_is_called_is_absent() -> None:
    found = rewritten("return x", ("k_proj", "v_proj"))
    assert [skip.reason for skip in found.skips] == ["absent: `self.k_proj` or `self.v_proj` is never called"]
    found = rewritten("return self.a(x) + self.b(x)", ("a", "b"), ("k_proj", "v_proj"))
    assert [site.calls for site in found.sites] == [("a", "b")]
    assert [skip.reason for skip in found.skips] == ["absent: `self.k_proj` or `self.v_proj` is never called"]
