"""What must keep calls from being moved: each line is one way in which moving them could be seen."""

from __future__ import annotations

import textwrap

import pytest

from patchkit.arch.spec import Attention, GatedMLP
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.sites import Rewritten

BETWEEN = (
    # exits: a projection would be computed that upstream does not compute
    ("if y: return x", "`return` stands between"),
    ("if y: raise ValueError", "`raise` stands between"),
    ("assert y", "`assert` stands between"),
    ("for i in y:\n    break", "`break` stands between"),
    ("for i in y:\n    continue", "`continue` stands between"),
    ("yield y", "`yield` stands between"),
    ("await y", "`await` stands between"),
    ("async with y: pass", "`async` stands between"),
    ("async for i in y: pass", "`async` stands between"),
    # the input is another one
    ("x = y", "`x` is bound again"),
    ("x, z = y", "`x` is bound again"),
    ("z = [1 for x in y]", "`x` is bound again"),
    ("for x in y: pass", "`x` is bound again"),
    ("if y:\n    x = other", "`x` is bound again"),
    ("with y as x: pass", "`x` is bound again"),
    ("try: pass\nexcept ValueError as x: pass", "`x` is bound again"),
    ("z = (x := y)", "`x` is bound again"),
    ("import x", "`x` is bound again"),
    ("import x.y", "`x` is bound again"),
    ("from y import x", "`x` is bound again"),
    ("from y import z as x", "`x` is bound again"),
    ("def x(): pass", "`x` is bound again"),
    ("class x: pass", "`x` is bound again"),
    ("match y:\n    case [x]: pass", "`x` is bound again"),
    ("match y:\n    case [*x]: pass", "`x` is bound again"),
    ("match y:\n    case {**x}: pass", "`x` is bound again"),
    ("del x", "`x` is bound again"),
    # the input may be changed in place
    ("x += y", "`x += y` stands between and changes a value in place"),
    ("x[0] = y", "`x[0]` stands between and changes a value in place"),
    ("x.data = y", "`x.data` stands between and changes a value in place"),
    ("del x[0]", "`x[0]` stands between and changes a value in place"),
    ("for x[0] in y: pass", "`x[0]` stands between and changes a value in place"),
    ("y.mul_(2)", "`y.mul_(2)` stands between and changes a value in place"),
    ("torch.add(y, y, out=y)", "`out=y` stands between and changes a value in place"),
    ("F.relu(y, inplace=True)", "`inplace=True` stands between and changes a value in place"),
    ("y.__setitem__(0, 1)", "stands between and changes a value in place"),
    ("change(x)", "`x` is also used in between"),
    ("z = x", "`x` is also used in between"),
    ("z = x.view(2)", "`x` is also used in between"),
    ("z = x.data", "`x` is also used in between"),
    ("z = x.T", "`x` is also used in between"),
    ("z = x.mT.relu()", "`x` is also used in between"),
    ("z = x.real", "`x` is also used in between"),
    ("z = x.grad", "`x` is also used in between"),
    ("change(raw)", "`raw`, which may be the same tensor as `x`, is also used in between"),
    ("change(turned)", "`turned`, which may be the same tensor as `x`, is also used in between"),
    ("z = [change(z) for z in x]", "`x` is also used in between"),
    ("change(view)", "`view`, which may be the same tensor as `x`, is also used in between"),
    ("change(either)", "`either`, which may be the same tensor as `x`, is also used in between"),
    ("change(pair)", "`pair`, which may be the same tensor as `x`, is also used in between"),
    ("change(held)", "`held`, which may be the same tensor as `x`, is also used in between"),
    ("change(some)", "`some`, which may be the same tensor as `x`, is also used in between"),
    ("change(named)", "`named`, which may be the same tensor as `x`, is also used in between"),
    ("change(again)", "`again`, which may be the same tensor as `x`, is also used in between"),
    ("change(typed)", "`typed`, which may be the same tensor as `x`, is also used in between"),
    ("change(printed)", "`printed`, which may be the same tensor as `x`, is also used in between"),
    ("change(row)", "`row`, which may be the same tensor as `x`, is also used in between"),
    ("change(self)", "`self` itself is passed on"),
    # the projections may be other ones
    ("self.k_proj = y", "`self.k_proj` stands between and changes a value in place"),
    ("self.scale += 1", "changes a value in place"),
    ("torch.set_grad_enabled(False)", "may change how projections are computed"),
    ("y.eval()", "may change how projections are computed"),
    # random draws would come in another order
    ("y = self.dropout(y)", "`self.dropout(y)` stands between and may draw random numbers"),
    ("y = F.dropout(y)", "may draw random numbers"),
    ("y = torch.randn_like(y)", "may draw random numbers"),
    ("y = torch.normal(y, 1)", "may draw random numbers"),
    ("y = y.bernoulli()", "may draw random numbers"),
    ("torch.manual_seed(0)", "may change how projections are computed"),
    ("y = self.g_proj(y)", "may run another projection"),
    ("y = y.forward(y)", "may run another projection"),
    ("y = self.gate(y)", "`self.gate(y)` stands between and may run another module"),
    ("y = self.inner.gate(y)", "may run another module"),
    ("y = self.layers[0](y)", "calls something computed"),
    ("layer = self.layers[0]\ny = layer.gate(y)", "`layer.gate(y)` stands between and may run another module"),
    ("for layer in self.layers:\n    y = layer.inner.gate(y)", "may run another module"),
    ("y = make()(y)", "calls something computed"),
    ("y = super().helper(y)", "may run another module"),
    ("y = y(1)", "may run another module"),
    ("with self.gate(y): pass", "may run another module"),
)

HARMLESS_BETWEEN = (
    "n = x.shape[0] + x.size(0) + len(x) + x.dim()",
    "z = x + 1",
    "z = x is None",
    "z = self.q_norm(y)",
    "z = self.inner.gate.weight.size(0)",
    "z = self._shape(y)",
    "z = rotate(y)",
    "z, y = y.chunk(2)",
    "cache = past.update(y, 1)",
    "if y is not None: z = torch.cat([y, y])",
    "for i in range(2): z = y",
    "with torch.no_grad(): z = y",
    "layer = self.layers[0]\nz = layer.norm(y).mul(2)",
    "z = self.inner.norm(y)\nz = z.mul(2)",
    "view = None",
    "pass",
    "if hasattr(self, 'q_norm'): z = y",
)

PRELUDE = """view = x[0].t()
either = other if other else x
some = x or other
again = [named := x]
typed: Tensor = x
pair = (x, 1)
held = {}
held[0] = view
raw = x.data
turned = x.T
for row in x: pass
print(printed := x)
"""


def forward(body: str, head: str = "async def forward(self, x, y):") -> str:
    return f"class Block:\n    {head}\n{textwrap.indent(body, ' ' * 8)}\n"


def rules(rewritten: Rewritten) -> set[str]:
    return {site.rule for site in rewritten.sites}


def reasons(rewritten: Rewritten) -> str:
    return "\n".join(skip.reason for skip in rewritten.skips)


def attention(body: str) -> Rewritten:
    return rewrite(forward(body), Attention("Block"))


def mlp(body: str) -> Rewritten:
    return rewrite(forward(body), GatedMLP("Block"))


@pytest.mark.parametrize(("between", "reason"), BETWEEN)
def test_not_together_over(between: str, reason: str) -> None:
    rewritten = attention(f"{PRELUDE}a = self.q_proj(x)\nb = self.k_proj(x)\n{between}\nc = self.v_proj(x)")
    assert rules(rewritten) == {"call-alone"}
    assert reason in reasons(rewritten)


def test_not_together_over_what_comes_first_in_the_same_statement() -> None:
    rewritten = attention("a = self.dropout(y), self.q_proj(x), self.k_proj(x), self.v_proj(x)")
    assert rules(rewritten) == {"call-alone"}
    assert "may draw random numbers" in reasons(rewritten)


@pytest.mark.parametrize("between", HARMLESS_BETWEEN)
def test_together_over(between: str) -> None:
    rewritten = attention(f"{PRELUDE}a = self.q_proj(x)\n{between}\nb = self.k_proj(x)\nc = self.v_proj(x)")
    assert rules(rewritten) == {"qkv-together"}, reasons(rewritten)


@pytest.mark.parametrize(("between", "reason"), BETWEEN)
def test_not_a_gated_mlp_over(between: str, reason: str) -> None:
    rewritten = mlp(
        f"{PRELUDE}g = self.gate_proj(x)\n{between}\nh = self.act_fn(g) * self.up_proj(x)\nself.down_proj(h)"
    )
    assert rules(rewritten) == {"call-alone"}
    # the gated MLP says "bound again" in its own words
    assert reason in reasons(rewritten) or "bound again" in reasons(rewritten)


@pytest.mark.parametrize("between", HARMLESS_BETWEEN)
def test_gated_mlp_over(between: str) -> None:
    rewritten = mlp(
        f"{PRELUDE}g = self.gate_proj(x)\n{between}\nh = self.act_fn(g) * self.up_proj(x)\nself.down_proj(h)"
    )
    assert rules(rewritten) == {"gated-mlp"}, reasons(rewritten)


@pytest.mark.parametrize(
    "last",
    [
        "c = self.v_proj(x) if y else None",
        "c = y if self.v_proj(x) else None",
        "c = y and self.v_proj(x)",
        "c = y or self.v_proj(x)",
        "c = lambda: self.v_proj(x)",
        "c = [self.v_proj(x) for _ in y]",
        "c = {i: self.v_proj(x) for i in y}",
        "c = (self.v_proj(x) for i in y)",
        "c = 1 < y < self.v_proj(x)",
        "c = y in self.v_proj(x)",
        "c = f'{self.v_proj(x)}'",
        "assert self.v_proj(x)",
        "c = await self.v_proj(x)",
        "y[self.v_proj(x)] = 1",
        "y[self.v_proj(x)] += 1",
        "y[self.v_proj(x)]: int = 1",
        "if self.v_proj(x): pass",
        "while self.v_proj(x): pass",
        "for i in self.v_proj(x): pass",
        "with self.v_proj(x): pass",
        "with y: c = self.v_proj(x)",
        "if y: c = self.v_proj(x)",
        "def c(): return self.v_proj(x)",
        "class c: d = self.v_proj(x)",
        "raise self.v_proj(x)",
        "match self.v_proj(x):\n    case 1: pass",
    ],
)
def test_never_computed_when_upstream_would_not(last: str) -> None:
    rewritten = attention(f"a = self.q_proj(x)\nb = self.k_proj(x)\n{last}")
    assert rules(rewritten) == {"call-alone"}
    compile(rewritten.source, "rewritten", "exec")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("global x\n{qkv}", "`x` is declared global or nonlocal"),
        ("{qkv_of_global}", "`z` is not a local variable"),
        ("{qkv}\nreturn locals()", "looks at its own local names"),
        ("def f():\n    nonlocal x\n{qkv}", "`x` is declared global or nonlocal"),
        ("def f():\n    change(x)\n{qkv}", "`x` is used by a nested function"),
        ("f = lambda: x.mul_(2)\n{qkv}", "`x` is used by a nested function"),
        ("try:\n    {qkv}\nexcept ValueError: pass", "stand in a `try` statement"),
        ("with y:\n    try: pass\n    finally:\n        {qkv}", "stand in a `try` statement"),
    ],
)
def test_input_that_others_can_reach(body: str, reason: str) -> None:
    qkv = "a = self.q_proj(x), self.k_proj(x), self.v_proj(x)"
    rewritten = attention(body.format(qkv=qkv, qkv_of_global=qkv.replace("(x)", "(z)")))
    assert rules(rewritten) == {"call-alone"}
    assert reason in reasons(rewritten)


@pytest.mark.parametrize("nested", ["def f(): return {}", "f = lambda: {}", "class f:\n    a = {}"])
def test_a_gated_mlp_in_a_nested_scope_is_left_alone(nested: str) -> None:
    rewritten = mlp(nested.format("self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"))
    assert not rewritten.sites
    assert reasons(rewritten).count("stands in a nested function, lambda or class") == 4


MLP_USES = (
    ("{g}\n{d}\nreturn g", "is used elsewhere, too"),
    ("{g}\n{d}\nif y: change(g)", "is used elsewhere, too"),
    ("{g}\n{d}\ng += 1", "is used elsewhere, too"),
    ("{g}\n{d}\ndel g", "is used elsewhere, too"),
    ("{g}\nz = g\n{d}", "is used elsewhere, too"),
    ("{g}\n{d}\nif y: g = 1\nchange(g)", "is used elsewhere, too"),
    ("def f(): return g.shape\n{g}\n{d}\nf()", "is used elsewhere, too"),
    ("def f(): return g\n{g}\n{d}\nf()", "`g` is used by a nested function"),
    ("global g\n{g}\n{d}", "`g` is declared global or nonlocal"),
    ("def f():\n    nonlocal g\n    g = 1\n{g}\n{d}", "`g` is declared global or nonlocal"),
    ("{g}\n{d}\nreturn locals()", "looks at its own local names"),
    ("if y:\n    {g}\n    {d}\nreturn g", "is used elsewhere, too"),
    ("g = y\nfor _ in y:\n    change(g)\n    {g}\n    {d}", "is used elsewhere, too"),
    ("g = y\nfor _ in y:\n    change(g)\n    {g}\n    {d}\n    if y: continue\n    g = y", "is used elsewhere, too"),
    ("try:\n    {g}\n    {d}\nfinally:\n    change(g)", "is used elsewhere, too"),
    ("{g}\nif y: g = y\n{d}", "`if y: g = y` stands in between"),
    ("{g}\ng, z = y\n{d}", "stands in between"),
    ("{g}\nz = (g := y)\n{d}", "stands in between"),
    ("{g}\ng *= 2\n{d}", "`g *= 2` stands in between"),
    ("{g}\nif y:\n    {d}", "`g` is not computed in the same straight line"),
    ("if y:\n    {g}\n{d}", "stands in between"),
    ("{g}\nc = {down} if y else None", "`g` is read where it may not be evaluated"),
    ("{g}\nc = [{down} for g in y]", "`g` is read where it may not be evaluated"),
    ("{g}\nc = (g := y) + {down}", "stands in between"),
    ("a = {g}\n{d}", "stands in between"),
    ("g = a = self.gate_proj(x)\n{d}\nchange(a)", "stands in between"),
    ("g, g = self.gate_proj(x), self.dropout(y)\n{d}", "stands in between"),
    ("g, a = self.gate_proj(x)\n{d}", "stands in between"),
    ("{g}\nx = y\n{d}", "`x` is bound again"),
    ("{g}\nif y: x = other\n{d}", "`x` is bound again"),
)


@pytest.mark.parametrize(("body", "reason"), MLP_USES)
def test_temporaries_that_are_needed(body: str, reason: str) -> None:
    down = "self.down_proj(self.act_fn(g) * self.up_proj(x))"
    rewritten = mlp(body.format(g="g = self.gate_proj(x)", d=f"c = {down}", down=down))
    assert rules(rewritten) == {"call-alone"}
    assert reason in reasons(rewritten)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = self.up_proj(x)\nx = self.gate_proj(x)\nself.down_proj(self.act_fn(x) * h)", ""),
        ("x = self.gate_proj(x)\nself.down_proj(self.act_fn(x) * self.up_proj(x))", "is used elsewhere, too"),
        ("x = y\nh = self.up_proj(x)\nx = self.gate_proj(x)\nself.down_proj(self.act_fn(x) * h)", ""),
        ("h = self.up_proj(x)\nx = y\nx = self.gate_proj(x)\nself.down_proj(self.act_fn(x) * h)", "is bound again"),
    ],
)
def test_input_overwritten_by_a_temporary(body: str, reason: str) -> None:
    rewritten = mlp(body)
    assert rules(rewritten) == ({"call-alone"} if reason else {"gated-mlp"})
    assert reason in reasons(rewritten)


@pytest.mark.parametrize(
    "pair",
    [
        "*self.gate_proj(x), self.up_proj(x)",
        "self.gate_proj(x), self.up_proj(x), self.dropout(y)",
        "self.up_proj(x), self.gate_proj(x)",
        "self.gate_proj(x), self.up_proj(x) if y else x",
    ],
)
def test_other_pairs_are_not_gate_and_up(pair: str) -> None:
    rewritten = mlp(f"g, u = {pair}\nself.down_proj(self.act_fn(g) * u)")
    assert rules(rewritten) == {"call-alone"}


@pytest.mark.parametrize("context", ["c = {} if y else None", "c = y and {}", "c = [{} for x in y]", "if {}: pass"])
def test_whole_expression_is_replaced_in_place_wherever_it_stands(context: str) -> None:
    whole = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
    assert mlp(context.format(whole)).source == forward(context.format("self.apply_mlp(x)"))


@pytest.mark.parametrize(
    "argument",
    [
        "self.act_fn(self.gate_proj(x)) + self.up_proj(x)",
        "self.act_fn(self.gate_proj(x)) * self.act_fn(self.up_proj(x))",
        "self.gate_proj(x) * self.up_proj(x)",
        "self.act_fn(self.up_proj(x)) * self.gate_proj(x)",
        "self.act_fn(self.gate_proj(x), 1) * self.up_proj(x)",
        "self.act_fn(input=self.gate_proj(x)) * self.up_proj(x)",
        "self.act_fn(self.gate_proj(x + 1)) * self.up_proj(x + 1)",
        "self.act_fn(self.gate_proj(x, 1)) * self.up_proj(x)",
        "self.act_fn(self.gate_proj(x)) * self.up_proj(x).float()",
        "self.act_fn(self.gate_proj(x)) * self.up_proj(x), 1",
        "*self.act_fn(self.gate_proj(x)) * self.up_proj(x)",
        "self.act_fn(self.gate_proj(x)) * self.gate_proj(x)",
        "self.act_fn(self.gate_proj(x)) * self.up_proj(x) * 2",
        "x",
        "",
    ],
)
def test_other_functions_are_not_gated_mlps(argument: str) -> None:
    rewritten = mlp(f"return self.down_proj({argument})")
    assert "gated-mlp" not in rules(rewritten)
    assert "not a gated MLP" in reasons(rewritten)
    compile(rewritten.source, "rewritten", "exec")


@pytest.mark.parametrize(
    "split",
    [
        "g, u = self.gate_up(x).chunk(3, dim=-1)",
        "g, u = self.gate_up(x).chunk(2)",
        "g, u = self.gate_up(x).chunk(2, dim=-2)",
        "g, u = self.gate_up(x).chunk(2, 1)",
        "g, u = self.gate_up(x).chunk(*y)",
        "g, u = self.gate_up(x).chunk(dim=2, chunks=-1)",
        "g, u = self.gate_up(x).split(2, dim=-1)",
        "g, u = self.gate_up(x), self.gate_up(x)",
        "c, d = self.gate_up(x).chunk(2, dim=-1); g, u = c",
        "c, d = self.gate_up(x).chunk(2, dim=-1); g, u = c; z = d",
        "g, u = other.chunk(self.gate_up(x), 2, dim=-1)",
        "g, *u = self.gate_up(x).chunk(2, dim=-1)",
        "g, g = self.gate_up(x).chunk(2, dim=-1); u = g",
        "g, u = self.gate_up(x.float()).chunk(2, dim=-1)",
        "c = self.gate_up(x).chunk(2, dim=-1); g = c[0]; u = c[0]",
        "c = self.gate_up(x).chunk(2, dim=-1); g = c[0]; u = c[2]",
        "c = self.gate_up(x).chunk(2, dim=-1); g = c[0]; u = c[1:]",
        "c = self.gate_up(x).chunk(2, dim=-1); g = c[0]; u = c[1]; z = c",
        "g = self.gate_up(x).chunk(2, dim=-1)[0]; u = self.gate_up(x).chunk(2, dim=-1)[1]",
        "(g, z), u = self.gate_up(x).chunk(2, dim=-1)",
    ],
)
def test_other_splits_are_not_gate_and_up(split: str) -> None:
    source = forward(f"{split}\nreturn self.down_proj(self.act_fn(g) * u)")
    rewritten = rewrite(source, GatedMLP("Block", gate_up="gate_up"))
    assert rules(rewritten) == {"call-alone"}
    assert "not a gated MLP" in reasons(rewritten)
    compile(rewritten.source, "rewritten", "exec")


def test_two_mlps_of_one_class_must_draw_in_the_same_order() -> None:
    gate_first = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
    up_first = "self.down_proj(self.up_proj(x) * self.act_fn(self.gate_proj(x)))"
    same = mlp(f"return {gate_first}, {gate_first}")
    assert [site.rule for site in same.sites] == ["gated-mlp"] * 2
    activation_last = "g, u = self.gate_proj(x), self.up_proj(x)\nb = self.down_proj(self.act_fn(g) * u)"
    for second in (f"b = {up_first}", activation_last):
        assert_only_the_first(mlp(f"a = {gate_first}\n{second}"))


def assert_only_the_first(other: Rewritten) -> None:
    assert [site.rule for site in other.sites] == ["gated-mlp", "call-alone", "call-alone", "call-alone"]
    assert "in another order than the MLP above" in reasons(other)


@pytest.mark.parametrize(
    "head",
    [
        "def forward():",
        "def forward(*args):",
        "def forward(*, x):",
        "@staticmethod\n    def forward(self, x, y):",
        "@classmethod\n    def forward(self, x, y):",
    ],
)
def test_a_method_without_an_object_is_left_alone(head: str) -> None:
    rewritten = rewrite(forward("return self.o_proj(x)", head), Attention("Block"))
    assert not rewritten.sites
    assert {skip.part for skip in rewritten.skips} == {"qkv", "o"}
    assert "no first parameter that stands for the object throughout" in reasons(rewritten)


@pytest.mark.parametrize("rebound", ["self = y", "global self", "for self in y: pass", "self: int = y"])
def test_a_method_that_gives_self_another_value_is_left_alone(rebound: str) -> None:
    rewritten = rewrite(forward(f"{rebound}\nreturn self.o_proj(x)"), Attention("Block"))
    assert not rewritten.sites
    assert "no first parameter that stands for the object throughout" in reasons(rewritten)
