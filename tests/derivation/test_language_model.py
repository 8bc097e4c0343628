"""Language models described by their source: which attribute is the head."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.models.bart.modeling_bart import BartForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralForCausalLM

from patchkit.arch.spec import LanguageModel
from patchkit.derivation import language_model
from patchkit.derivation.language_model import NO_LOSS_FUNCTION, language_model_of, language_models_in
from patchkit.errors import RewriteError

BODY = "class Model(Base):\n    def forward(self, x, labels=None):\n        {}\n"
LOSS = "loss = self.loss_function({}, vocab_size=self.size)"
HEADS = {
    "a call": ("logits = self.embed_out(x)", "logits", "embed_out"),
    "by name": ("z = self.lm_head(x)", "logits=z", "lm_head"),
    "a call around another": ("logits = self.head(self.norm(x))", "logits", "head"),
    "a scaled one": ("logits = self.head(x) * 2", "logits", "head"),
    "one that is changed": ("logits = self.head(x)\n        logits = logits + self.bias", "logits", "head"),
    "an annotated one": ("logits: Tensor = self.head(x)", "logits", "head"),
    "declared first": ("logits: Tensor\n        logits = self.head(x)", "logits", "head"),
    "after other variables": ("y = self.norm(x)\n        z: T = y\n        logits = self.head(z)", "logits", "head"),
    "one of two names": ("z = logits = self.head(x)", "logits", "head"),
    "one after a part of it": ("y.logits = self.norm(x)\n        logits = self.head(y)", "logits", "head"),
    "a call after one of something else": ("logits = f(x) + x.g() + self.head(x)", "logits", "head"),
    "by name, not by place": ("z = self.head(x)\n        y = self.norm(x)", "y, logits=z", "head"),
    "by name, not by another": ("z = self.head(x)\n        y = self.norm(x)", "labels=y, logits=z", "head"),
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
    "another name": f"z = self.head(x)\n        {LOSS.format('labels=z')}",
    "another variable": f"z = self.head(x)\n        {LOSS.format('logits')}",
    "a loss function of a part": "logits = self.head(x)\n        loss = self.model.loss_function(logits)",
    "a head of a part": f"logits = self.model.head(x)\n        {LOSS.format('logits')}",
    "a loss function that is not called": "logits = self.head(x)\n        loss = f(self.loss_function, logits)",
}


@pytest.mark.parametrize("lines", NONE.values(), ids=NONE)
def test_what_is_none(lines):
    assert list(language_models_in(BODY.format(lines).replace("(, ", "("))) == []


def test_each_model_of_a_text_in_its_order():
    model = BODY.format(f"logits = self.head(x)\n        {LOSS.format('logits')}")
    others = [
        model.replace("class Model", "class Second").replace("self.head", "self.embed_out"),
        "class Nothing(Base):\n    def other(self):\n        return 1\n",
        BODY.format("return x").replace("Model", "NoLoss"),
        model.replace("def forward", "def other").replace("Model", "NoForward"),
        "def forward(self, x):\n    logits = self.head(x)\n    return self.loss_function(logits)\n",
    ]
    found = list(language_models_in("\n".join([*others, model])))
    assert found == [LanguageModel("Second", "embed_out"), LanguageModel("Model", "head")]


def test_a_text_that_cannot_be_followed(monkeypatch):
    """Also where it can be parsed, and it is too deep for what follows it."""
    with pytest.raises(RewriteError, match=r"odd\.py.*does not parse"):
        list(language_models_in("class Model(", "odd.py"))

    def fails(function):
        raise RecursionError

    monkeypatch.setattr(language_model, "_head_of", fails)
    with pytest.raises(RewriteError, match="its language models cannot be described"):
        list(language_models_in(BODY.format("return x")))
    why = language_model_of(LlamaForCausalLM)
    assert isinstance(why, str)
    assert "LlamaForCausalLM cannot be described" in why


def test_live_classes():
    assert language_model_of(LlamaForCausalLM) == LanguageModel("LlamaForCausalLM")
    assert language_model_of(MistralForCausalLM) == LanguageModel("MistralForCausalLM")
    assert language_model_of(LlamaModel) == NO_LOSS_FUNCTION
    assert language_model_of(BartForConditionalGeneration) == NO_LOSS_FUNCTION
    assert language_model_of(nn.Linear) == NO_LOSS_FUNCTION


def test_a_forward_that_was_replaced(monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda self, x: x)
    assert "was replaced by" in language_model_of(LlamaForCausalLM)
