"""Random programs around the projections: whatever was rewritten computes the same, in the same order of draws."""

from __future__ import annotations

import textwrap
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_ins import assert_same_behaviour

from patchkit.arch.spec import Attention, GatedMLP, SharedInput
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.sites import Rewritten

pytestmark = pytest.mark.slow

VARIABLES = ("x", "y", "a", "b", "q", "k", "query", "h")
variables = st.sampled_from(VARIABLES)
MANY = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)

EXPRESSIONS = (
    "{0}", "{0}.view(s)", "{0}[0]", "{0} + {1}", "{0} * {0}.shape[0]", "self.norm({0})", "rotate({0})",
    "{0} if flag else {1}", "self.dropout({0})", "F.dropout({0})", "torch.randn_like({0})", "self.other_proj({0})",
    "mutate({0})", "{0}.add_({1})", "({1} := {0})", "[{0} for {0} in ({1},)][0]", "(lambda: {0})()",
)  # fmt: skip
STATEMENTS = (
    "{0} = {e}", "{0} = {e}", "{0} = {e}", "{0}, {1} = {1}, {e}", "{0} = {1} = {e}", "{0} += {e}", "{0}: Tensor = {e}",
    "{e}", "pass  # a comment", "# a comment alone\n{0} = {e}", "{0} = {e}; {1} = {0}", "self.scale = {0}.shape[0]",
    "assert flag", "del {0}\n{0} = rotate({1})", "def f({0}=s):\n    return {0}", "def f():\n    return mutate({0})",
    "if flag: return ({0}, {1})", "if flag:\n    raise ValueError",
)  # fmt: skip
COMPOUND = (
    "if flag:\n{body}", "if flag:\n    pass\nelse:\n{body}", "for _ in range(2):\n{body}",
    "for {0} in ({1}, {1}):\n{body}", "with context():\n{body}", "try:\n{body}\nexcept ValueError:\n    {0} = {1}",
    "def g():\n{body}\n    return s\ng()", "for _ in range(2):\n{body}\n    if flag: continue\n    {0} = {1}",
)  # fmt: skip
QUIET_PLACES = (
    "{p}", "{p}.view(s)", "self.q_norm({p}.view(s)).transpose(1, 2)", "{p} * 2", "rotate({p})", "[{p}][0]",
    "{p} + {0}",
)  # fmt: skip
PLACES = (
    "({0} := {p})", "({p} if flag else {0})", "flag and {p}", "{0} + {p}", "[{p} for _ in range(2)][0]", "(lambda: {p})()",
    "self.dropout({0}) + {p}", "[{p}, {0}][0]",
)  # fmt: skip


def one_in(draw: st.DrawFn, count: int) -> bool:
    return draw(st.integers(1, count)) == count


def place(draw: st.DrawFn, code: str) -> str:
    """A projection call in a larger expression."""
    return draw(st.sampled_from(PLACES if one_in(draw, 20) else QUIET_PLACES)).format(draw(variables), p=code)


@st.composite
def expression(draw: st.DrawFn) -> str:
    return draw(st.sampled_from(EXPRESSIONS)).format(draw(variables), draw(variables))


@st.composite
def noise(draw: st.DrawFn) -> str:
    """A statement that may, or may not, be in the way."""
    if one_in(draw, 6):
        body = textwrap.indent(draw(noise()), "    ")
        return draw(st.sampled_from(COMPOUND)).format(draw(variables), draw(variables), body=body)
    return draw(st.sampled_from(STATEMENTS)).format(draw(variables), draw(variables), e=draw(expression()))


@st.composite
def program(draw: st.DrawFn, core: st.SearchStrategy[list[str]]) -> str:
    """A class whose forward has the statements of ``core`` in this order, with noise between, or in a branch."""
    lines = [f"{name} = y * {number}" for number, name in enumerate(VARIABLES[2:], start=2)]
    crowd = draw(st.sampled_from((0, 0, 1, 2)))
    for statement in draw(core):
        if crowd and one_in(draw, 12):
            statement = draw(st.sampled_from(COMPOUND)).format("a", "b", body=textwrap.indent(statement, "    "))
        lines += [statement, *draw(st.lists(noise(), max_size=crowd if one_in(draw, 3) else 0))]
    if one_in(draw, 5):
        inner = textwrap.indent("\n".join(lines[6:]), "    ")
        lines[6:] = [draw(st.sampled_from(COMPOUND)).format("a", "b", body=inner)]
    lines.append(f"return {', '.join(draw(st.lists(variables, min_size=1, max_size=3, unique=True)))},")
    body = textwrap.indent("\n".join(lines), "        ")
    return f"class Block:\n    def forward(self, x, y, flag):\n{body}\n"


@st.composite
def attention(draw: st.DrawFn) -> list[str]:
    """Calls of the projections, mostly of one input, in any order, one or several to a statement."""
    source, names = draw(variables), draw(st.permutations(["q_proj", "k_proj", "v_proj", "o_proj"]))
    calls, spare = [], [name for name in VARIABLES if name != source]
    for name in names:
        argument = draw(expression()) if one_in(draw, 30) else source
        calls.append(place(draw, f"self.{name}({argument})"))
    statements = []
    while calls:
        count = draw(st.integers(1, len(calls)))
        targets = [draw(variables) if one_in(draw, 4) else draw(st.sampled_from(spare)) for _ in range(count)]
        statements.append(f"{', '.join(targets)} = {', '.join(calls[:count])}")
        calls = calls[count:]
    return statements


@st.composite
def gated(draw: st.DrawFn, fused: bool) -> list[str]:
    """A gated MLP in single-use temporaries of any names, also reused ones; each part inline or not."""
    source, statements = draw(st.sampled_from(("x", "x", "h", "a"))), []
    fresh = [name for name in draw(st.permutations(VARIABLES)) if name != source]
    messy = one_in(draw, 3)

    def name() -> str:
        return draw(variables) if messy or not fresh else fresh.pop()

    def stage(code: str) -> str:
        if one_in(draw, 20):
            code = draw(st.sampled_from(("({0} + 0)", "self.norm({0})", "self.dropout({0})", "({0} * s)"))).format(code)
        if draw(st.booleans()):
            return code
        target = name()
        statements.append(f"{target} = {code}" if draw(st.booleans()) else f"{target}: Tensor = {code}")
        return target

    inputs = [source, draw(variables) if one_in(draw, 10) else source]
    if fused:
        whole = stage(f"self.gate_up_proj({inputs[0]})")
        split = draw(st.sampled_from(("{0}.chunk(2, dim=-1)", "{0}.chunk(2, -1)", "torch.chunk({0}, 2, dim=-1)")))
        halves = [name(), name()]
        if draw(st.booleans()):
            statements.append(f"{', '.join(halves)} = {split.format(whole)}")
        else:
            statements.append(f"{halves[0]} = {split.format(whole)}")
            halves = [f"{halves[0]}[0]", f"{halves[0]}[1]"]
        gate, up = draw(st.permutations(halves))
        sides = [stage(f"self.act_fn({stage(gate)})"), stage(up)]
    elif draw(st.booleans()):
        sides = [stage(f"self.act_fn({stage(f'self.gate_proj({inputs[0]})')})"), stage(f"self.up_proj({inputs[1]})")]
    else:
        sides = [stage(f"self.up_proj({inputs[0]})"), stage(f"self.act_fn({stage(f'self.gate_proj({inputs[1]})')})")]
    left, right = draw(st.permutations(sides))
    down = f"self.down_proj({stage(f'{left} * {right}')})"
    assignment = draw(st.sampled_from(("{0} = {1}", "{0} = {0} + {1}", "{0} += {1}")))
    return [*statements, assignment.format(draw(variables), place(draw, down))]


def rules(rewritten: Rewritten) -> set[str]:
    return {site.rule for site in rewritten.sites}


def test_attention_programs_compute_the_same() -> None:
    seen: Counter[str] = Counter()

    @MANY
    @given(program(attention()))
    def check(source: str) -> None:
        rewritten = rewrite(source, Attention("Block"))
        assert_same_behaviour(source, rewritten)
        seen.update(rules(rewritten) or {"nothing"})

    check()
    assert min(seen["qkv-together"], seen["call-alone"]) > MANY.max_examples // 10, seen


def test_programs_with_two_groups_compute_the_same() -> None:
    """Four layers of mostly one input, as two groups: whatever is moved passes over the other group's draws."""
    seen: Counter[str] = Counter()

    @MANY
    @given(program(attention()), st.permutations(["q_proj", "k_proj", "v_proj", "o_proj"]), st.integers(2, 4))
    def check(source: str, names: list[str], count: int) -> None:
        groups = [tuple(names[:count]), tuple(names[count:])]
        rewritten = rewrite(source, SharedInput("Block", tuple(group for group in groups if len(group) > 1)))
        assert_same_behaviour(source, rewritten)
        seen[f"{len(rewritten.sites)} groups"] += 1

    check()
    assert min(seen["0 groups"], seen["1 groups"]) > MANY.max_examples // 10, seen


def test_gated_programs_compute_the_same() -> None:
    seen: Counter[str] = Counter()

    @MANY
    @given(program(gated(fused=False)))
    def check(source: str) -> None:
        rewritten = rewrite(source, GatedMLP("Block"))
        assert_same_behaviour(source, rewritten)
        seen.update(rules(rewritten) or {"nothing"})

    check()
    assert min(seen["gated-mlp"], seen["call-alone"]) > MANY.max_examples // 10, seen


def test_fused_gated_programs_compute_the_same() -> None:
    seen: Counter[str] = Counter()

    @MANY
    @given(program(gated(fused=True)))
    def check(source: str) -> None:
        rewritten = rewrite(source, GatedMLP("Block", gate_up="gate_up_proj"))
        assert_same_behaviour(source, rewritten)
        seen.update(rules(rewritten) or {"nothing"})

    check()
    assert min(seen["gated-mlp"], seen["call-alone"]) > MANY.max_examples // 10, seen
