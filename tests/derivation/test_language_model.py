"""Language models described by their source: which attribute is the head."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.models.bart.modeling_bart import BartForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralForCausalLM

from patchkit.arch.spec import LanguageModel
from patchkit.derivation.language_model import NO_LOSS_FUNCTION, language_model_of, language_models_in

BODY = "class Model(Base):\n    def forward(self, x, labels=None):\n        {}\n"
LOSS = "loss = self.loss_function({}, vocab_size=self.size)"
HEADS = {
    "a call": ("logits = self.embed_out(x)", "logits", "embed_out"),
    "by name": ("z = self.lm_head(x)", "logits=z", "lm_head"),
    "a call around another": ("logits = self.head(self.norm(x))", "logits", "head"),
    "a scaled one": ("logits = self.head(x) * 2", "logits", "head"),
    "one that is changed": ("logits = self.head(x)\n        logits = logits + self.bias", "logits", "head"),
    "an annotated one": ("logits: Tensor = self.head(x)", "logits", "head"),
}


@pytest.mark.parametrize(("line", "given", "head"), HEADS.values(), ids=HEADS)
def test_heads(line, given, head):
    source = BODY.format(f"{line}\n        {LOSS.format(given)}")
    assert list(language_models_in(source)) == [LanguageModel("Model", head)]


NONE = {
    "no loss function": "logits = self.lm_head(x)",
    "a loss function of another object": "logits = self.lm_head(x)\n        loss = other.loss_function(logits)",
    "logits that are no variable": f"{LOSS.format('self.lm_head(x)')}",
    "logits of a function": f"logits = head(x)\n        {LOSS.format('logits')}",
    "nothing": LOSS.format(""),
}


@pytest.mark.parametrize("lines", NONE.values(), ids=NONE)
def test_what_is_none(lines):
    assert list(language_models_in(BODY.format(lines).replace("(, ", "("))) == []


def test_live_classes():
    assert language_model_of(LlamaForCausalLM) == LanguageModel("LlamaForCausalLM")
    assert language_model_of(MistralForCausalLM) == LanguageModel("MistralForCausalLM")
    assert language_model_of(LlamaModel) == NO_LOSS_FUNCTION
    assert language_model_of(BartForConditionalGeneration) == NO_LOSS_FUNCTION
    assert language_model_of(nn.Linear) == NO_LOSS_FUNCTION


def test_a_forward_that_was_replaced(monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda self, x: x)
    assert "was replaced by" in language_model_of(LlamaForCausalLM)
