"""What calls are moved past, by name: each form of a call and of a read, where it stands, and what counts as a tensor's."""

from __future__ import annotations

import pytest

from patchkit.arch.spec import Attention, GatedMLP
from patchkit.rewrite import passed_over as module
from patchkit.rewrite.effects import HARMLESS_METHODS
from patchkit.rewrite.rewriter import rewrite

Q, K, V = "a = self.q_proj(x)", "b = self.k_proj(x)", "c = self.v_proj(x)"


def qkv(*lines: str) -> tuple[str, ...]:
    """What is passed over where q, k and v are taken together."""
    body = "".join(f"        {line}\n" for line in lines)
    sites = rewrite(f"class Block:\n    def forward(self, x, y):\n{body}", Attention("Block")).sites
    assert [site.rule for site in sites] == ["qkv-together"]
    return sites[0].passed_over


FORMS = {
    # a statement between projections: what it names
    "z = helper(y)": ("helper()",),
    "z = math.floor(2.5)": ("math.floor()",),
    "z = torch.nn.functional.relu(y)": ("torch.nn.functional.relu()",),
    "z = len(y)": ("len()",),
    "helper(y)": ("helper()",),
    "z = self.norm(y)": ("self.norm()",),
    "z = self.norm.inner(y)": ("self.norm.inner()", "self.norm"),
    "z = self.scale": ("self.scale",),
    "z = self.scale * self.other": ("self.scale", "self.other"),
    "z = self.norm.weight": ("self.norm",),
    "z = self.scales[0]": ("self.scales",),
    "z = self.scale.view(1)": ("self.scale.view()", "self.scale"),
    "z = y.update(1)": (".update()",),
    "z = y.cache.update(1)": (".update()",),
    "z = y.chunk(2)[0].other()": (".other()",),
    "z = y.view(1).transpose(1, 2)": (),
    "z = y.cache": (),
    "z = y + 1": (),
    "z = helper(y), helper(y), self.norm(y), self.norm(y)": ("helper()", "self.norm()"),
    "z = first(second(y))": ("first()", "second()"),
    "z = self.norm(helper(self.scale))": ("self.norm()", "helper()", "self.scale"),
    "z = y.view(size(y))": ("size()",),
    "z = helper(y).view(1)": ("helper()",),
    "z = helper(y).other(1)": (".other()", "helper()"),
}


@pytest.mark.parametrize("statement", FORMS)
def test_each_form(statement: str) -> None:
    """Between the first and the last of them; what stands before and behind is passed by nothing."""
    assert qkv("before(y)", Q, statement, K, V, "behind(y)") == FORMS[statement]
    assert qkv("before(y)", Q, K, statement, V, statement) == FORMS[statement]
    assert qkv(statement, Q, K, V, statement) == ()


def test_the_order_is_that_of_the_text() -> None:
    assert qkv(Q, "z = first(y)", K, "z = self.norm(y)", "z = first(y)", "z = y.update()", V) == (
        "first()", "self.norm()", ".update()",
    )  # fmt: skip


LAST = {
    # in the statement of a projection: what is passed over
    ("a = helper(y) + self.q_proj(x)", K, V): ("helper()",),
    ("a = self.q_proj(x) + helper(y)", K, V): ("helper()",),
    (Q, K, "c = helper(y) + self.v_proj(x)"): ("helper()",),
    (Q, K, "c = self.v_proj(x) + helper(y)"): (),
    (Q, K, "c = self.norm(self.v_proj(x))"): (),
    (Q, "b = self.norm(self.k_proj(x))", V): ("self.norm()",),
    ("a = self.q_proj(x).view(1)", "b = self.k_proj(x).update()", V): (".update()",),
    ("return helper(self.q_proj(x), self.k_proj(x), first(y), self.v_proj(x), second(y))",): ("first()",),
}


@pytest.mark.parametrize("lines", LAST, ids="; ".join)
def test_what_stands_beside_a_projection(lines: tuple[str, ...]) -> None:
    """Up to the last of them, and nothing that is in one of them."""
    assert qkv(*lines) == LAST[lines]


METHODS = [
    "chunk",
    "clone",
    "contiguous",
    "detach",
    "expand",
    "expand_as",
    "flatten",
    "float",
    "half",
    "bfloat16",
    "double",
    "mean",
    "mul",
    "movedim",
    "narrow",
    "permute",
    "pow",
    "repeat",
    "repeat_interleave",
    "reshape",
    "rsqrt",
    "select",
    "softmax",
    "split",
    "sqrt",
    "squeeze",
    "sum",
    "swapaxes",
    "t",
    "to",
    "transpose",
    "type",
    "type_as",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
    "size",
    "dim",
    "numel",
    "stride",
    "is_contiguous",
    "is_floating_point",
]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_of_a_tensor(method: str) -> None:
    calls = ("y", "y.other", "self.shape", "helper", "y.other().t")
    between = [f"z = {start}.{method}()" for start in calls]
    assert qkv(Q, *between, f"z = y.{method}.other()", f"z = y.my{method}()", K, V) == (
        f"self.shape.{method}()", "self.shape", f"helper.{method}()", ".other()", f".my{method}()",
    )  # fmt: skip


def test_methods_of_a_tensor_change_nothing() -> None:
    assert HARMLESS_METHODS < module._TENSOR_METHODS
    assert not [method for method in module._TENSOR_METHODS if method.endswith("_")]
    expected = {"chunk", "contiguous", "float", "reshape", "split", "t", "to", "transpose", "type", "unsqueeze", "view"}
    assert expected < module._TENSOR_METHODS


@pytest.mark.parametrize(("between", "expected"), [
    ("z = helper(y)", ("helper()",)), ("z = self.scale", ("self.scale",)), ("z = y.view(1)", ()), ("z = y.update()", (".update()",)),
])  # fmt: skip
def test_a_gated_mlp(between: str, expected: tuple[str, ...]) -> None:
    body = f"g = self.gate_proj(x)\n        {between}\n        u = self.up_proj(x)\n        return self.down_proj(self.act_fn(g) * u)"
    (site,) = rewrite(f"class M:\n    def forward(self, x, y):\n        {body}\n", GatedMLP("M")).sites
    assert (site.rule, site.passed_over) == ("gated-mlp", expected)


def test_a_name_of_the_method_is_no_global_one() -> None:
    """Whatever stands in it; a call of one itself is no case, as that may run another projection."""
    assert qkv("h = y", Q, "z = h.update()", K, V) == (".update()",)
    assert qkv(Q, "z = h.update()", K, V) == ("h.update()",)
