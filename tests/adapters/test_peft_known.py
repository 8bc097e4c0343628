"""A PEFT whose layers read otherwise than those that are proven is read by nobody: upstream's code runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from peft_checkouts import CHANGED_SCALING, installed_peft, peft_release

import patchkit
from patchkit.adapters import formula, peft_known
from patchkit.adapters.peft_known import (
    SHIPPED_PROOFS,
    ReaderProof,
    add_reader_proofs,
    find_reader_proof,
    shipped_proofs,
)
from patchkit.adapters.peft_sources import READERS, digest_of, pieces_of, sources_of
from patchkit.check.numeric.peft_contract import CASES
from patchkit.errors import CacheError, PatchkitWarning
from patchkit.testing import add_lora, fused_calls, identical_runs, run, tiny_inputs, tiny_model

VERSIONS = {"transformers": "5.23.0", "torch": "2.13.0", "peft": "0.99.0", "python": "3.11.7"}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    peft_known._why_unknown.cache_clear()
    yield
    peft_known._why_unknown.cache_clear()
    forget()


def forget():
    """Let every formula that asks for a proof be asked anew.

    What one found before is not to be put back: others may have been taken in since, which it would not compare.
    """
    from patchkit.adapters import peft, peft_embedding, peft_parameters

    asked = [peft.LORA, peft.FORMULA, peft._DORA, peft._SAVED, peft_parameters.PARAMETERS]
    for one in [*asked, peft_embedding._EMBEDDING, peft_embedding._DORA]:
        one.intact, one.held = formula._unknown, False


def another_peft(monkeypatch, folder, changed):
    release = peft_release(folder, "0.99.0", changed)
    monkeypatch.setattr(peft_known, "installed_release", lambda _: release)
    peft_known._why_unknown.cache_clear()
    forget()
    return release


LAYER, VARIANTS, DORA = (f"peft/tuners/lora/{name}.py" for name in ("layer", "variants", "dora"))
OTHER = "peft/utils/other.py"
UTILS = "peft/tuners/tuners_utils.py"
BOTH_DORA = {"Linear, DoRA", "Embedding, DoRA"}
TEXTS = {
    # what reads otherwise: the file, the text, the readers that it concerns
    "Linear.forward": (*CHANGED_SCALING[LAYER], LAYER, {"Linear", "Linear, DoRA"}),
    "the cast of the input": (
        "def _cast_input_dtype(self, x",
        "def _cast_input_dtype(self, x, *_",
        UTILS,
        {"Linear", "Linear, DoRA", "Linear4bit", "Linear8bitLt"},
    ),
    "DoRA's norm": ("torch.linalg.norm(weight, dim=1)", "torch.linalg.norm(weight, dim=0)", DORA, BOTH_DORA),
    "an embedding's sum": (
        "embed_scale = self._get_embed_scale()\n\n            for active_adapter",
        "embed_scale = None\n\n            for active_adapter",
        LAYER,
        {"Embedding", "Embedding, DoRA"},
    ),
    "a parameter's product": (
        "class _LoraFactorsProxy(nn.Module):",
        "class _LoraFactorsProxy2(nn.Module):",
        LAYER,
        {"ParamWrapper"},
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_the_readers_that_a_change_concerns(case, tmp_path, monkeypatch):
    old, new, path, concerned = TEXTS[case]
    if old not in installed_peft(path):
        pytest.skip("this PEFT writes it otherwise")
    another_peft(monkeypatch, tmp_path, {path: (old, new)})
    assert {reader for reader in READERS if peft_known._why_unknown(reader)} == concerned


def test_an_unchanged_text_is_known_whatever_its_number(tmp_path, monkeypatch):
    another_peft(monkeypatch, tmp_path, None)
    assert [peft_known._why_unknown(reader) for reader in READERS] == [None] * len(READERS)


OPTIONS = {
    "Linear.forward": {"lora_dropout": 0.2},
    "DoRA's norm": {"use_dora": True},
    "an embedding's sum": {"target_modules": ["embed_tokens"]},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_model_on_such_a_peft_runs_upstream_and_says_why(case, tmp_path, monkeypatch):
    old, new, path, _ = TEXTS[case]
    if old not in installed_peft(path):
        pytest.skip("this PEFT writes it otherwise")
    another_peft(monkeypatch, tmp_path, {path: (old, new)})
    model = add_lora(tiny_model("llama"), **OPTIONS[case]).train()
    inputs = tiny_inputs("llama", model)
    expected = run(model, inputs)
    # Blocks whose layers have no adapter are no concern of it.
    report = patchkit.apply(model, **({"qkv": False, "o": False, "mlp": False} if case.startswith("an emb") else {}))
    assert report.left
    assert not report.at("fused")
    assert all("PEFT 0.99.0 is not known" in row.reason for row in report.left), str(report)
    assert "`patchkit check --peft installed`" in report.left[0].reason
    with fused_calls() as calls:
        found = run(model, inputs)
    assert calls == []
    assert identical_runs(expected, found)


def test_what_the_users_own_check_proved_is_read(tmp_path, monkeypatch):
    old, new, path, _ = TEXTS["Linear.forward"]
    release = another_peft(monkeypatch, tmp_path / "peft", {path: (old, new)})
    assert peft_known._why_unknown("Linear") is not None
    source = digest_of(sources_of(pieces_of(release.read, "Linear")))
    proof = ReaderProof("Linear", source, {"LoRA: eval": 1e-15}, VERSIONS, "2026-01-02")
    add_reader_proofs([proof])
    assert find_reader_proof("Linear", source) == proof
    assert peft_known._why_unknown("Linear") is None
    assert peft_known._why_unknown("Linear, DoRA") is not None, "a proof is of one reader"


def test_what_is_to_be_proven_is_not_asked_for_its_proof(tmp_path, monkeypatch):
    another_peft(monkeypatch, tmp_path, CHANGED_SCALING)
    monkeypatch.setattr(peft_known, "_assumed", False)
    ask = peft_known.known("Linear")
    assert ask() is not None
    peft_known.assume_known()
    assert ask() is None


def test_a_peft_without_source_is_not_known(tmp_path, monkeypatch):
    release = another_peft(monkeypatch, tmp_path, None)
    (release.location / LAYER).unlink()
    assert "is not known" in peft_known._why_unknown("Linear")
    (release.location / LAYER).write_text("def\n")
    peft_known._why_unknown.cache_clear()
    assert "cannot be compared with what is proven" in peft_known._why_unknown("Linear")


WRONG = ["{}", "[]", "no JSON", '{"reader": "Linear"}']


@pytest.mark.parametrize("line", WRONG)
def test_a_damaged_line_is_named_and_proves_nothing(line, tmp_path, monkeypatch):
    damaged = tmp_path / "proofs.jsonl"
    damaged.write_text(f"{SHIPPED_PROOFS.read_text()}{line}\n")
    with pytest.raises(CacheError, match=rf"proofs\.jsonl:{len(shipped_proofs()) + 1} is damaged"):
        shipped_proofs(damaged)
    monkeypatch.setattr(peft_known, "SHIPPED_PROOFS", damaged)
    reader, source = next(iter(shipped_proofs(SHIPPED_PROOFS)))
    monkeypatch.setattr("patchkit.cache.storage._said", set(), raising=False)
    with pytest.warns(PatchkitWarning, match="is damaged"):
        assert find_reader_proof(reader, source) is None


def test_a_proof_of_no_check_is_none():
    proof = ReaderProof("Linear", "0" * 64, {}, VERSIONS, "2026-01-02")
    with pytest.raises(ValueError, match="proves nothing"):
        ReaderProof.from_line(proof.to_line())


def test_proofs_that_ship_are_of_readers_that_there_are(tmp_path):
    proofs = shipped_proofs()
    assert {reader for reader, _ in proofs} == set(READERS) == set(CASES)
    copied = tmp_path / "proofs.jsonl"
    shutil.copy(SHIPPED_PROOFS, copied)
    add_reader_proofs([next(iter(proofs.values()))], copied)
    assert copied.read_text() == SHIPPED_PROOFS.read_text(), "sorted, and proving again changes nothing"


CODE = """
import warnings; warnings.simplefilter("ignore")
import copy, peft, patchkit
from patchkit.testing import add_lora, fused_calls, identical_runs, run, tiny_inputs, tiny_model
assert peft.__file__.startswith({folder!r}), peft.__file__
model = add_lora(tiny_model("llama"))
inputs = tiny_inputs("llama", model)
expected = run(copy.deepcopy(model), inputs)
report = patchkit.apply(model)
with fused_calls() as calls:
    found = run(model, inputs)
assert calls == [], calls
assert identical_runs(expected, found)
print(report.left[0].reason)
"""


def test_a_changed_peft_that_really_runs(tmp_path):
    """The whole way, in a process that imports a PEFT whose LoRA is scaled twice."""
    folder = tmp_path / "site"
    shutil.copytree(Path(find_spec("peft").origin).parent, folder / "peft", ignore=shutil.ignore_patterns("*.pyc"))
    layer = folder / LAYER
    layer.write_text(layer.read_text().replace(*CHANGED_SCALING[LAYER]))
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATCHKIT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(folder=str(folder))]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "is not known: what its Linear computes is not proven" in done.stdout
