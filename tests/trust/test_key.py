"""What is kept about a source is of one version of the rewriter: another one looks anew."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.arch.registry import find
from patchkit.check.static import findings as static
from patchkit.errors import PatchkitWarning, RewriteError
from patchkit.testing import tiny_model
from patchkit.trust import key as identity
from patchkit.trust.key import key_of
from patchkit.trust.ledger import find_proof
from patchkit.upstream.release import installed_release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")


def test_outcomes_are_not_taken_from_another_version(monkeypatch):
    rewritten = []
    real = static._rewrite
    monkeypatch.setattr(static, "_rewrite", lambda found, block: rewritten.append(block) or real(found, block))
    release, llama = installed_release(), find("llama")
    first = static.findings_of(release, llama)
    count = len(rewritten)
    assert count == 2
    assert static.findings_of(release, llama) == first
    assert len(rewritten) == count
    monkeypatch.setattr(static, "REWRITE_VERSION", static.REWRITE_VERSION + 1)
    assert static.findings_of(release, llama) == first
    assert len(rewritten) == 2 * count


def test_proofs_are_not_taken_from_another_version(monkeypatch):
    assert all(find_proof(key_of(cls)) for cls in (LlamaAttention, LlamaMLP))
    monkeypatch.setattr(identity, "REWRITE_VERSION", identity.REWRITE_VERSION + 1)
    assert not any(find_proof(key_of(cls)) for cls in (LlamaAttention, LlamaMLP))
    with pytest.warns(PatchkitWarning, match="its source is not in the ledger"):
        report = patchkit.apply(tiny_model("llama"), trust="ledger")
    assert {row.level for row in report.rows} == {"upstream"}


NESTED = "class A:\n    class B:\n        def forward(self): pass\n\n\nclass C(A):\n    pass\n"


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        (NESTED, "D", "class D is not in the source"),
        (NESTED, "B", "class B is not in the source"),
        (NESTED, "A.C", "class A.C is not in the source"),
        ("", "A", "class A is not in the source"),
        ("class A\n", "A", "does not parse"),
    ],
)
def test_what_is_not_in_a_text_has_no_hash(text, name, said):
    with pytest.raises(RewriteError, match=said):
        identity.hash_of_class(text, name)


def test_each_class_of_a_text_has_its_own_hash():
    found = {name: identity.hash_of_class(NESTED, name) for name in ("A", "A.B", "C")}
    assert len(set(found.values())) == 3
    assert found == {name: identity.hash_of_class(f"import x\n\n\n{NESTED}", name) for name in found}


@pytest.mark.parametrize("case", ["no forward", "no source", "passed over"])
def test_a_class_without_a_key_says_why(case, monkeypatch):
    """Where its source is not to be had, and where something that counts cannot be read."""
    if case == "passed over":
        monkeypatch.setattr(identity, "_passed_over", lambda cls: ["rescale()"])
        assert "`rescale()` is called between the projections, and is not defined" in key_of(LlamaMLP)
        return
    cls = type("Mine", () if case == "no forward" else (LlamaMLP,), {})
    if case == "no source":
        scope = {"__name__": "nowhere"}
        exec("class Mine:\n    def forward(self, x): return x\n", scope)
        cls = scope["Mine"]
    assert key_of(cls).startswith(
        "it has no method forward" if case == "no forward" else "there is no source of nowhere.Mine.forward"
    )


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_what_nobody_describes_has_a_key_without_a_description():
    """Any class of a known source has one, block or not."""
    key = key_of(Doubled)
    assert (key.class_name.rpartition(".")[2], key.outside, key.description) == ("Doubled", "", "")
    assert key.rewrite == identity.REWRITE_VERSION
