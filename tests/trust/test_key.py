"""What is kept about a source is of one version of the rewriter: another one looks anew."""

from __future__ import annotations

import pytest
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.arch.registry import find
from patchkit.check.static import findings as static
from patchkit.errors import PatchkitWarning
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
