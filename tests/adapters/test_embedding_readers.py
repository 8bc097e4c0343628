"""``loralib.Embedding``, and loralib's and torchtune's linear layers as ``lm_head``: fused where they stand."""

from __future__ import annotations

import copy

import loralib
import pytest
import torch
from replacing import assert_same, fill
from torchtune.modules.peft import DoRALinear, LoRALinear

import patchkit
from patchkit.testing import CHECKS, run, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")


def with_embedding(architecture="llama", **options):
    """A tiny model in training mode whose only adapter is that of its embedding; id 0 is padding."""
    model = tiny_model(architecture).requires_grad_(False)
    embedding = model.get_input_embeddings()
    vocab, hidden = embedding.weight.shape
    settings = {"r": 3, "lora_alpha": 5, "padding_idx": embedding.padding_idx} | options
    layer = loralib.Embedding(vocab, hidden, **settings)
    with torch.no_grad():
        layer.weight.copy_(embedding.weight)
        if settings["r"]:
            layer.lora_A.normal_(generator=torch.Generator().manual_seed(0))
            layer.lora_B.mul_(0.3)
    model.set_input_embeddings(layer)
    return model.train()


def row_of(report, part):
    (row,) = [row for row in report.rows if row.part == part]
    return row


@pytest.mark.parametrize("trained", [False, True], ids=["frozen table", "trained table"])
@pytest.mark.parametrize("options", [{}, {"r": 1}, {"padding_idx": None}, {"merge_weights": False}], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_embedding_equals_loralib(architecture, options, trained):
    model = with_embedding(architecture, **options)
    model.get_input_embeddings().weight.requires_grad_(trained)
    reference = copy.deepcopy(model)
    assert row_of(patchkit.apply(model), "embedding").level == "fused"
    assert_same(reference, model, architecture)


def test_the_row_of_padding_gets_no_gradient():
    padding = int(tiny_inputs("llama", tiny_model("llama"))["input_ids"].flatten()[3])
    model = with_embedding(padding_idx=padding)
    model.get_input_embeddings().weight.requires_grad_(True)
    reference = copy.deepcopy(model)
    assert row_of(patchkit.apply(model), "embedding").level == "fused"
    assert_same(reference, model)
    found = run(model, tiny_inputs("llama", model)).gradients
    assert not found["model.embed_tokens.lora_A"][:, padding].any()
    assert found["model.embed_tokens.lora_A"].any()


def test_embedding_merges_in_eval():
    model = with_embedding()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    for either in (reference, model):
        either.eval()
        assert either.get_input_embeddings().merged
    row = row_of(patchkit.report(model), "embedding")
    assert (row.level, row.expected) == ("upstream", True)
    assert_same(reference, model, seeds=(0,), input_gradients=False, backward=False)
    for either in (reference, model):
        either.train()
    assert row_of(patchkit.report(model), "embedding").level == "fused"
    assert_same(reference, model)


def test_revert_gives_loralibs_class_back():
    model = with_embedding()
    patchkit.apply(model)
    patchkit.revert(model)
    assert type(model.get_input_embeddings()) is loralib.Embedding


def test_embedding_of_rank_zero():
    model = with_embedding(r=0)
    reference = copy.deepcopy(model)
    row = row_of(patchkit.apply(model), "embedding")
    assert (row.level, row.expected) == ("upstream", True)
    assert_same(reference, model)


# States of the embedding that only its own forward knows, and what the report says of them.
LEFT = {
    "max_norm": lambda layer: setattr(layer, "max_norm", 1.0),
    "scale_grad_by_freq": lambda layer: setattr(layer, "scale_grad_by_freq", True),
    "its scaling is nan": lambda layer: setattr(layer, "scaling", float("nan")),
}


@pytest.mark.parametrize("reason", LEFT)
def test_embedding_left_to_loralib(reason):
    model = with_embedding()
    LEFT[reason](model.get_input_embeddings())
    reference = copy.deepcopy(model)
    row = row_of(patchkit.apply(model), "embedding")
    assert row.level == "upstream"
    assert reason in row.reason
    if "nan" not in reason:
        assert_same(reference, model)


HEADS = {
    "Linear": lambda m: loralib.Linear(m.in_features, m.out_features, 3, 5, 0.3, bias=False),
    "MergedLinear": lambda m: loralib.MergedLinear(m.in_features, m.out_features, 3, 5, 0.3, [True, False], bias=False),
    "LoRALinear": lambda m: LoRALinear(m.in_features, m.out_features, 3, 5.0, 0.3),
    "DoRALinear": lambda m: DoRALinear(m.in_features, m.out_features, 3, 5.0),
}


@pytest.mark.parametrize("head", HEADS)
def test_head(head):
    model = with_embedding()
    layer = HEADS[head](model.lm_head)
    fill(layer, model.lm_head, "lm_head")
    model.lm_head = layer
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert {row.part: row.level for row in report.rows if row.part in ("embedding", "head")} == {
        "embedding": "fused",
        "head": "fused",
    }
    assert list(model.state_dict()) == list(reference.state_dict())
    assert_same(reference, model)


@pytest.mark.parametrize("check", ["training_curve", "checkpointing_reentrant", "deepcopy", "bfloat16", "autocast"])
def test_contract(check):
    model = with_embedding()
    result = CHECKS[check](model, tiny_inputs("llama", model))
    assert result.passed, str(result)
    assert row_of(result.patch_result, "embedding").level == "fused"
