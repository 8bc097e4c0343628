"""Adding a rule is one file: what rewrites, binds, judges and reports follows without another edit."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_rule_examples as examples
from edited_upstream import edited_llama, inputs, model_of
from synthetic_releases import SMALL_LLAMA, folder_release, path_of

import patchkit
import patchkit.rewrite.rules
from patchkit.arch.registry import find
from patchkit.arch.spec import Attention
from patchkit.binding.classes import patched_class
from patchkit.check.static.drift import diagnose
from patchkit.check.static.findings import findings_of
from patchkit.check.static.verdicts import judge
from patchkit.module_tree import PATCH
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules import registry
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Skip
from patchkit.testing import compare_runs, run

TOY = '''"""A toy: an output projection that is given its input as the only member of a tuple that is unpacked."""

from functools import partial

import libcst as cst

from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site

VALID = (("return self.o_proj(*(x + y,))", "return self.apply_o(x + y)"),)

INVALID = (("return self.o_proj(*(x, y))", "exactly one positional argument"),)


def _plan(method, block, part, edits):
    for call in edits.untaken(method.calls_of(*block.projections(part))):
        if not call.nested and _only_member(call.node):
            edits.replace[call.node] = partial(_as_output, method)
            edits.take([call], Site(part, RULE.name, method.line(call.node), (call.name,)))


def _only_member(call):
    if len(call.args) != 1 or call.args[0].star != "*" or not isinstance(call.args[0].value, cst.Tuple):
        return None
    members = call.args[0].value.elements
    return members[0].value if len(members) == 1 and isinstance(members[0], cst.Element) else None


def _as_output(method, call):
    return call.with_changes(func=method.attribute_of_self(RULE.method), args=[cst.Arg(_only_member(call))])


def _arguments(block, site):
    return {"o": block.o}


RULE = Rule(
    name="output-unpacked",
    parts=("o",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method="apply_o",
    arguments=_arguments,
)
'''

FORM = "self.o_proj(*(attn_output,))"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rule]:
    """The rule of one more file in the folder of rules, until the test ends."""
    name = "patchkit.rewrite.rules.output_unpacked"
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "output_unpacked.py").write_text(TOY)
    monkeypatch.setattr(patchkit.rewrite.rules, "__path__", [*patchkit.rewrite.rules.__path__, str(folder)])
    registry.rules.cache_clear()
    yield registry.rule_named("output-unpacked")
    registry.rules.cache_clear()
    del sys.modules[name]
    del patchkit.rewrite.rules.output_unpacked


def test_its_examples_are_true(toy: Rule) -> None:
    for before, after in toy.valid:
        examples.test_valid(toy, before, after)
    for body, reason in toy.invalid:
        examples.test_invalid(toy, body, reason)


def test_the_order(toy: Rule) -> None:
    names = [rule.name for rule in registry.rules()]
    assert names == [
        "gated-mlp",
        "loss-of-logits",
        "output-call",
        "output-unpacked",
        "qkv-together",
        "shared-input",
        "ungated-mlp",
        "call-alone",
    ]


BODY = "return self.o_proj(x), self.o_proj(*(y,)), self.o_proj(x, y)"
WHY = "`self.o_proj({})` does not take exactly one positional argument"


def test_the_rewriter_leaves_it_without_the_rule() -> None:
    rewritten = rewrite(examples.in_class(BODY), Attention("Block"), only=frozenset({"o"}))
    assert [site.rule for site in rewritten.sites] == ["output-call"]
    assert rewritten.skips == (Skip("o", WHY.format("*(y,)"), 3), Skip("o", WHY.format("x, y"), 3))


def test_the_rewriter_asks_it_for_what_other_rules_leave(toy: Rule) -> None:
    """A reason why one rule left a call is none once another rule has taken it."""
    rewritten = rewrite(examples.in_class(BODY), Attention("Block"), only=frozenset({"o"}))
    assert rewritten.source == examples.in_class("return self.apply_o(x), self.apply_o(y), self.o_proj(x, y)")
    assert [site.rule for site in rewritten.sites] == ["output-call", toy.name]
    assert rewritten.skips == (Skip("o", WHY.format("x, y"), 3),)


def test_a_patched_class_and_the_report(toy: Rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = edited_llama(tmp_path, monkeypatch, ("self.o_proj(attn_output)", FORM))
    (attention, _) = find("llama").blocks
    cls = patched_class(llama.LlamaAttention, attention, frozenset({"o"}))
    assert isinstance(cls, type)
    patch = vars(cls)[PATCH]
    assert [(site.part, site.rule) for site in patch.sites] == [("o", toy.name)]
    assert hasattr(cls, "apply_o")

    model = model_of(llama)
    plain = copy.deepcopy(model)
    report = patchkit.apply(model, trust="always", strict=True)
    assert {(row.part, row.level, row.reason) for row in report.rows if row.part == "o"} == {("o", "fused", "")}
    assert compare_runs(run(plain, inputs()), run(model, inputs())).passed


def test_without_it_the_report_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = edited_llama(tmp_path, monkeypatch, ("self.o_proj(attn_output)", FORM))
    report = patchkit.apply(model_of(llama), trust="always")
    why = WHY.format("*(attn_output,)")
    assert {(row.part, row.level, row.reason) for row in report.rows if row.part == "o"} == {("o", "alone", why)}


def edit_for_a_renamed_output(folder: Path) -> str | None:
    """What is proposed for a release that calls the output projection by another name, and nothing is known of."""
    source = SMALL_LLAMA.replace("self.o_proj(attend(query, key, value))", "self.out(*(attend(query, key, value),))")
    release = folder_release(folder, "5.91.0", {path_of("llama"): source})
    llama = find("llama")
    attention, _ = findings_of(release, llama)
    assert attention.parts["o"].absent
    edit = diagnose(release, llama, llama.blocks[0], attention, "o", None).edit
    return edit.after if edit else None


def test_drift_expects_it(toy: Rule, tmp_path: Path) -> None:
    assert edit_for_a_renamed_output(tmp_path / "releases") == 'Attention("LlamaAttention", o="out")'


def test_drift_expects_nothing_of_the_kind_without_it(tmp_path: Path) -> None:
    assert edit_for_a_renamed_output(tmp_path / "releases") is None


def test_its_verdict(toy: Rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps outcomes by source and version of the rewriter, so a test has one of its own."""
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    source = SMALL_LLAMA.replace("self.o_proj(attend(query, key, value))", "self.o_proj(*(attend(query, key, value),))")
    release = folder_release(tmp_path / "releases", "5.91.0", {path_of("llama"): source})
    attention, _ = findings_of(release, find("llama"))
    outcome = attention.parts["o"]
    assert (outcome.rules, outcome.whole) == ((toy.name,), True)
    assert judge(outcome, ()) == judge(outcome, (toy.name,)) == "rewritten"
    assert judge(outcome, ("output-call",)) == "rewritten differently"
