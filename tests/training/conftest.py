"""Models, data and a tokenizer for real trainers, all made here: nothing is downloaded."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo
from tokenizers import Tokenizer, models, pre_tokenizers
from torch._dynamo.utils import counters
from transformers import PreTrainedTokenizerFast

from patchkit.testing import add_lora, tiny_inputs, tiny_model
from patchkit.testing.tiny_models import VOCAB_SIZE

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "mat", "a", "big", "red", "and", "then", "slept", "well", "today"]


@pytest.fixture(scope="session")
def tokenizer():
    """A word-level tokenizer; its vocabulary fits the tiny models."""
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    assert len(tokens) <= VOCAB_SIZE
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def sentences():
    """Sentences of several lengths, as many as asked for."""

    def make(count: int) -> list[str]:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(4, 12, (count,), generator=generator).tolist()
        return [
            " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist())
            for length in lengths
        ]

    return make


@pytest.fixture
def lora_pair():
    """Makes ``(unpatched copy, model to patch, examples)`` of a tiny architecture with adapters."""

    def make(name: str = "llama", examples: int = 24, dtype: torch.dtype = torch.float32, **lora_config):
        model = add_lora(tiny_model(name).to(dtype), **lora_config).train()
        inputs = tiny_inputs(name, model, batch=examples)
        rows = [{key: value[i] for key, value in inputs.items()} for i in range(examples)]
        return copy.deepcopy(model), model, rows

    return make


@pytest.fixture
def compiler():
    """A fresh ``torch.compile`` that raises where it would fall back to running uncompiled; yields its counters."""
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counters
    torch.compiler.reset()
