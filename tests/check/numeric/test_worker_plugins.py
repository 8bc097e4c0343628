"""The numeric stage for a plugin's architecture: which models it names, what they show, and models of unusual kinds."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn

from patchkit.arch import registry
from patchkit.arch.spec import Architecture, GatedMLP
from patchkit.check.numeric import worker
from patchkit.check.numeric.tiny_instances import FirstOutput, WithoutCache, comparable
from patchkit.check.numeric.worker import check_model
from patchkit.testing import tiny_inputs, tiny_model

pytest_plugins = ["example_plugin"]


def test_its_models_are_asked_for_by_name(acme):
    asked = json.dumps({"models_of": ["acme", "llama", "of a plugin that does not work here"]}).encode()
    assert json.loads(worker.answer(asked)) == {
        "acme": ["AcmeForCausalLM"],
        "llama": ["llama"],
        "of a plugin that does not work here": [],
    }


def test_it_passes(acme, monkeypatch):
    checks = ("forward_backward", "generate", "revert")
    monkeypatch.setattr(worker, "NUMERIC_CHECKS", checks)
    outcome = check_model("acme", "AcmeForCausalLM")
    assert outcome.status == "passed", outcome
    assert [block.class_name for block in outcome.blocks] == [
        "acme_models.modeling_acme.AcmeAttention",
        "acme_models.modeling_acme.AcmeFeedForward",
    ]
    assert all(tuple(block.checks) == checks for block in outcome.blocks)
    assert {proof.key.description for proof in outcome.proofs} == {
        "Attention(q='wq', k='wk', v='wv', o='wo')",
        "GatedMLP(gate='w1', up='w3', down='w2', activation_function='F.silu')",
    }


def test_what_is_no_pass(acme):
    assert "unknown architecture 'gone'" in check_model("gone", "").problems["gone"]
    blocks = (GatedMLP("Qwen3MLP"),)
    other = Architecture("other", (), "transformers.models.qwen3.modeling_qwen3", blocks, model="Qwen3MLP")
    with registry.registered_also(other):
        (problem,) = check_model("other", "Qwen3MLP").problems.values()
        assert problem.startswith("its tiny model cannot be built: architecture 'other' names the model")
    other = replace(other, model="acme_models.modeling_acme:AcmeForCausalLM")
    with registry.registered_also(other):
        # It has blocks, and none of them is of this architecture: the caller weighs that.
        assert {block.class_name.rpartition(".")[2] for block in check_model("other", "AcmeForCausalLM").blocks} == {
            "AcmeAttention",
            "AcmeFeedForward",
        }


# ---- models that the harness could not run as they are


class Plain(nn.Module):
    """Gives a tensor, and takes nothing but its input."""

    def __init__(self, outputs=32):
        super().__init__()
        self.inner = nn.Linear(32, outputs)

    def forward(self, x):
        return self.inner(x)


class Labelled(Plain):
    def forward(self, x, labels=None):
        logits = self.inner(x)
        return SimpleNamespace(logits=logits, loss=logits.mean())


X = {"x": torch.randn(2, 20, 32)}
LABELLED = {**X, "labels": torch.zeros(2)}


def test_a_model_that_gives_a_tensor():
    model, inputs = comparable(Plain(), X)
    assert type(model) is FirstOutput
    outputs = model(use_cache=False, **inputs)
    assert outputs.logits.shape == (2, 20, 32)
    assert outputs.loss.requires_grad


def test_a_model_with_a_loss_that_knows_no_cache():
    model, inputs = comparable(Labelled(), LABELLED)
    assert type(model) is WithoutCache
    assert inputs == LABELLED
    assert model(use_cache=False, **inputs).loss.requires_grad


def test_a_few_logits_are_none():
    model, inputs = comparable(Labelled(outputs=2), {"x": X["x"][:1], "labels": torch.zeros(1)})
    assert type(model) is FirstOutput
    assert "labels" not in inputs


def test_a_model_of_transformers_stays_as_it_is():
    llama = tiny_model("llama")
    inputs = tiny_inputs("llama", llama)
    assert comparable(llama, inputs) == (llama, inputs)


def test_copies_are_of_the_whole():
    """What is inside may say how it is copied; what is around it says so itself."""
    model, _ = comparable(Plain(), X)
    model.host.__class__ = type("Copied", (Plain,), {"__deepcopy__": lambda self, memo: self})
    copied = copy.deepcopy(model)
    assert type(copied) is FirstOutput
    assert copied is not model
