"""The parity contract of the loss without logits, on every architecture.

A patched model has no logits in training, so each check is given models that show their loss and nothing else.
"""

from __future__ import annotations

import copy

import pytest
import torch

import patchkit
from patchkit.check.numeric.loss_on_the_spot import LossAlone
from patchkit.testing import (
    CHECKS,
    TEXT_PROJECTIONS,
    TINY_MODELS,
    add_lora,
    fused_calls,
    measure_step,
    on_device,
    run_checks,
    tiny_inputs,
    tiny_model,
)
from patchkit_kernels.lora import cross_entropy

TOKENS_AT_ONCE = 8
SHORT = ("forward_backward", "eval", "repeated_backward", "ragged_padding", "dropout", "generate")
SEEN_ELSEWHERE = {"mlp_input_shapes", "compile"}
"""The first is about MLPs; what is compiled is one case of its own."""


class Loss(LossAlone):
    """The same of what a model becomes where its adapters are merged for good."""

    def merge_and_unload(self):
        return Loss(self.host.merge_and_unload())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "chunk_of", lambda *sizes: TOKENS_AT_ONCE)


def adapted(name, **lora):
    model = tiny_model(name)
    return add_lora(model, target_modules=[*TEXT_PROJECTIONS, "lm_head"], **lora), tiny_inputs(name, model)


def patch(model):
    return patchkit.apply(model, loss=True, trust="always")


def assert_passes(name, names, device):
    model, inputs = adapted(name)
    results = run_checks(Loss(model), inputs, patch, revert=patchkit.revert, names=names, device=device)
    assert {result.check: result.findings for result in results if result.status == "failed"} == {}
    assert results[0].passed


def loss_rows(model):
    return [(row.module_class, row.level, row.reason) for row in patchkit.report(model).rows if row.part == "loss"]


@pytest.mark.parametrize("name", TINY_MODELS)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_losses_and_gradients(name, device):
    model, inputs = on_device(*adapted(name), device)
    host = type(model.base_model.model).__name__
    patch(model.train())
    assert loss_rows(model) == [(host, "fused", "")]
    with fused_calls() as calls:
        assert model(**inputs).logits is None
    assert calls.count("lora_cross_entropy") == 1
    assert_passes(name, SHORT, device)


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in {*SHORT, *SEEN_ELSEWHERE}])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_the_whole_contract(name, check, device):
    assert_passes(name, [check], device)


@pytest.mark.parametrize("name", ["gemma2"])
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_compiled(name, device):
    assert_passes(name, ["compile"], device)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]], ids=["frozen head", "adapted head"])
def test_bytes_kept_do_not_grow_with_the_vocabulary(targets):
    """Of a step with 24 tokens, which keeps 24 rows of the vocabulary upstream, in more than one copy."""
    kept = {}
    for vocabulary in (1000, 3000):
        model = tiny_model("llama", vocab_size=vocabulary)
        inputs = tiny_inputs("llama", model)
        model = add_lora(model, target_modules=targets).train()
        plain = copy.deepcopy(model)
        patch(model)
        kept[vocabulary] = measure_step(plain, inputs).bytes_kept, measure_step(model, inputs).bytes_kept
    tokens = inputs["input_ids"].numel()
    upstream, ours = (kept[3000][side] - kept[1000][side] for side in (0, 1))
    assert upstream >= 2000 * tokens * 4
    # The gradient of an adapter's B [vocabulary, rank] is what is made in forward.
    assert ours == (2000 * 4 * 4 if "lm_head" in targets else 0)
    assert torch.is_tensor(model(**inputs).loss)
