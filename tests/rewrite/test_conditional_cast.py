"""The cast before the last projection of an MLP: taken as T5 writes it, and with any other word in it left."""

from __future__ import annotations

import itertools
import textwrap

import pytest

from patchkit.arch.spec import MLP
from patchkit.rewrite.rewriter import rewrite

BLOCK = MLP("Block", "wi", "wo", activation="act", dropout="dropout")

TENSOR = "isinstance(self.wo.weight, torch.Tensor)"
DIFFERS = "h.dtype != self.wo.weight.dtype"
NOT_INT8, NOT_UINT8 = "self.wo.weight.dtype != torch.int8", "self.wo.weight.dtype != torch.uint8"
USUAL = " and ".join([TENSOR, DIFFERS, NOT_INT8])
CAST = "h = h.to(self.wo.weight.dtype)"


def rewritten(condition=USUAL, cast=CAST, *, before="", after="", word="if"):
    """What becomes of an MLP with this cast: the statements with calls of ``apply_...``, and the rules."""
    lines = [before, "h = self.act(self.wi(h))", f"{word} {condition}:", textwrap.indent(cast, " " * 4), after]
    body = "\n".join([line for line in lines if line] + ["h = self.wo(h)", "return h"])
    found = rewrite(f"class Block:\n    def forward(self, h, y, flag):\n{textwrap.indent(body, ' ' * 8)}\n", BLOCK)
    made = [line.strip() for line in found.source.splitlines() if "apply_" in line]
    return made, {site.rule for site in found.sites}, {site.casts for site in found.sites}


def taken(*exceptions):
    listed = "".join(f"{one}, " for one in exceptions).rstrip()
    return [f"h = self.apply_mlp(h, cast_unless=({listed}))"], {"ungated-mlp"}, {True}


@pytest.mark.parametrize(
    "exceptions", [(), ("torch.int8",), ("torch.int8", "torch.uint8"), ("torch.uint8", "torch.int8")]
)
def test_each_order_of_conditions(exceptions):
    """The exceptions are in the order of the text."""
    listed = [f"self.wo.weight.dtype != {one}" for one in exceptions]
    for conditions in itertools.permutations([TENSOR, DIFFERS, *listed]):
        expected = taken(*(one.rpartition(" ")[2] for one in conditions if one in listed))
        assert rewritten(" and ".join(conditions)) == expected
        first, *others = conditions
        assert rewritten(f"{first} and ({' and '.join(others)})") == expected


def test_in_parentheses_and_on_a_line_of_its_own():
    assert rewritten(f"(\n{' and '.join([TENSOR, DIFFERS])}\n)") == taken()
    assert rewritten(cast=f"# why\n{CAST}  # so") == taken("torch.int8")
    assert rewritten(cast="h = h.to(\n    self.wo.weight.dtype,\n)") == taken("torch.int8")


CONDITIONS = {
    "nothing": "True",
    "no tensor is asked for": f"{DIFFERS} and {NOT_INT8}",
    "no difference is asked for": f"{TENSOR} and {NOT_INT8}",
    "one or the other": f"{TENSOR} or {DIFFERS}",
    "one or the other behind": f"{TENSOR} and ({DIFFERS} or {NOT_INT8})",
    "not a tensor": f"not {TENSOR} and {DIFFERS}",
    "another weight's kind": f"isinstance(self.wi.weight, torch.Tensor) and {DIFFERS}",
    "another kind": f"isinstance(self.wo.weight, torch.nn.Parameter) and {DIFFERS}",
    "another's Tensor": f"isinstance(self.wo.weight, Tensor) and {DIFFERS}",
    "one of two kinds": f"isinstance(self.wo.weight, (torch.Tensor, int)) and {DIFFERS}",
    "two arguments in the other order": f"isinstance(torch.Tensor, self.wo.weight) and {DIFFERS}",
    "an argument more": f"isinstance(self.wo.weight, torch.Tensor, int) and {DIFFERS}",
    "an argument less": f"isinstance(self.wo.weight) and {DIFFERS}",
    "an unpacked argument": f"isinstance(self.wo.weight, *torch.Tensor) and {DIFFERS}",
    "an argument by name": f"isinstance(self.wo.weight, kind=torch.Tensor) and {DIFFERS}",
    "another question": f"issubclass(self.wo.weight, torch.Tensor) and {DIFFERS}",
    "equal": f"{TENSOR} and h.dtype == self.wo.weight.dtype",
    "another object": f"{TENSOR} and h.dtype is not self.wo.weight.dtype",
    "sides swapped": f"{TENSOR} and self.wo.weight.dtype != h.dtype",
    "another variable": f"{TENSOR} and y.dtype != self.wo.weight.dtype",
    "another projection": f"{TENSOR} and h.dtype != self.wi.weight.dtype",
    "another attribute": f"{TENSOR} and h.device != self.wo.weight.device",
    "a chain": f"{TENSOR} and h.dtype != self.wo.weight.dtype != torch.int8",
    "an equal exception": f"{TENSOR} and {DIFFERS} and self.wo.weight.dtype == torch.int8",
    "an exception of another projection": f"{TENSOR} and {DIFFERS} and self.wi.weight.dtype != torch.int8",
    "an exception of the input": f"{TENSOR} and {DIFFERS} and h.dtype != torch.int8",
    "an exception of another module": f"{TENSOR} and {DIFFERS} and self.wo.weight.dtype != bnb.int8",
    "a computed exception": f"{TENSOR} and {DIFFERS} and self.wo.weight.dtype != kinds[0]",
    "a flag": f"{TENSOR} and {DIFFERS} and flag",
    "a call": f"{TENSOR} and {DIFFERS} and self.casts()",
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_another_condition_is_left(case):
    made, rules, casts = rewritten(CONDITIONS[case])
    assert (rules, casts) == ({"call-alone"}, {False})
    assert not any("apply_mlp" in line for line in made)


CASTS = {
    "of another variable": "h = y.to(self.wo.weight.dtype)",
    "to another variable": "y = h.to(self.wo.weight.dtype)",
    "to two": "y = h = h.to(self.wo.weight.dtype)",
    "to a place": "h.data = h.to(self.wo.weight.dtype)",
    "by another method": "h = h.type(self.wo.weight.dtype)",
    "by a function": "h = to(h, self.wo.weight.dtype)",
    "of a part": "h = h.data.to(self.wo.weight.dtype)",
    "to another weight's dtype": "h = h.to(self.wi.weight.dtype)",
    "to the weight": "h = h.to(self.wo.weight)",
    "to the dtype of its own": "h = h.to(h.dtype)",
    "with more": "h = h.to(self.wo.weight.dtype, True)",
    "by name": "h = h.to(dtype=self.wo.weight.dtype)",
    "unpacked": "h = h.to(*self.wo.weight.dtype)",
    "unpacked by name": "h = h.to(**self.wo.weight.dtype)",
    "with nothing": "h = h.to()",
    "no call": "h = h.to",
    "added": "h += h.to(self.wo.weight.dtype)",
    "annotated": "h: object = h.to(self.wo.weight.dtype)",
    "two statements": f"{CAST}\ny = 1",
    "two statements before": f"y = 1\n{CAST}",
    "nothing": "pass",
}


@pytest.mark.parametrize("case", CASTS)
def test_another_cast_is_left(case):
    assert rewritten(cast=CASTS[case])[1:] == ({"call-alone"}, {False})


@pytest.mark.parametrize("branch", ["else:\n    pass", "elif flag:\n    h = y", f"else:\n    {CAST}"])
def test_a_cast_with_another_branch_is_left(branch):
    assert rewritten(after=branch)[1] == {"call-alone"}


def test_a_loop_is_left():
    assert rewritten(word="while")[1] == {"call-alone"}


@pytest.mark.parametrize("before", ["torch = y", "for torch in y: pass", "import other as torch"])
def test_a_local_torch_is_another_one(before):
    assert rewritten(before=before)[1] == {"call-alone"}
    assert rewritten(before=before.replace("torch", "other"))[1] == {"ungated-mlp"}


def test_it_goes_on_above_the_cast_where_nothing_stands_between():
    """Dropout above it, a statement that does not concern it above it; what binds the value below it is in the way."""
    made, rules, _ = rewritten(before="s = y.shape")
    assert (made, rules) == taken("torch.int8")[:2]
    assert rewritten(after="h = h + 1")[1] == {"call-alone"}
    assert rewritten(after="s = y.shape")[:2] == taken("torch.int8")[:2]
    made, rules, _ = rewritten(after="h = self.dropout(h)")
    assert rules == {"call-alone"}


def test_dropout_above_it():
    body = f"h = self.act(self.wi(h))\nh = self.dropout(h)\nif {USUAL}:\n    {CAST}\nreturn self.wo(h)"
    found = rewrite(f"class Block:\n    def forward(self, h):\n{textwrap.indent(body, ' ' * 8)}\n", BLOCK)
    assert "return self.apply_mlp(h, dropout=self.dropout, cast_unless=(torch.int8,))" in found.source
    assert [site.casts for site in found.sites] == [True]
