"""Fixtures of the tests of proofs: a test module names this file in ``pytest_plugins`` and uses ``cache``."""

import json

import pytest

from patchkit.trust import policy as trust
from patchkit.trust.ledger import Key, Proof

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}


@pytest.fixture
def cache(request, tmp_path, monkeypatch):
    """A cache of its own, and nothing remembered from another test. Those of real releases share the user's cache."""
    folder = tmp_path / "cache"
    if "wheels" not in request.keywords:
        monkeypatch.setenv("PATCHKIT_CACHE", str(folder))
    monkeypatch.setattr(trust, "_decided", {})
    return folder


@pytest.fixture
def make_proof():
    def make(name="Attention", source="a", *, rewrite=1, stage="numeric", checks=1, date="2026-01-02", **versions):
        key = Key(f"transformers.models.acme.modeling_acme.{name}", source * 64, rewrite)
        errors = {f"check_{index}": 1.5e-07 for index in range(checks)}
        return Proof(key, stage, {"qkv": "fused"}, errors, VERSIONS | versions, date)

    return make


@pytest.fixture
def lines():
    """The objects of a ledger file, in its order."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
