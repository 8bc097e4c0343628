"""Upstream as somebody edited it: the real source of a module with a change, loaded under the module's own name."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers.models.llama import modeling_llama

from patchkit.rewrite.rewriter import rewrite
from patchkit.testing import add_lora
from patchkit.testing.tiny_models import initialise

RENAMED = ("query_states", "the_query_states")
"""An edit that changes the source and no number."""


def edited_llama(folder, monkeypatch, *edits):
    """``modeling_llama`` with texts replaced. It stands in ``sys.modules`` until the test ends."""
    source = Path(modeling_llama.__file__).read_text(encoding="utf-8")
    for old, new in edits:
        assert old in source
        source = source.replace(old, new)
    path = folder / "modeling_llama.py"
    path.write_text(source, encoding="utf-8")
    name = modeling_llama.__name__
    # transformers resolves its names when they are first used, and would keep the edited class for ever.
    assert transformers.LlamaForCausalLM is modeling_llama.LlamaForCausalLM
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def model_of(module, **config):
    """A small model of the edited classes with adapters: no tiny model of ours, as a user's is none."""
    sizes = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = modeling_llama.LlamaConfig(**sizes, num_key_value_heads=3, vocab_size=300, **config)
    torch.manual_seed(0)
    model = module.LlamaForCausalLM(config)
    initialise(model)
    return add_lora(model).train()


def inputs():
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def swapping_rewriter(source, block, **options):
    """A rewriter with a fault: it hands out k and v the wrong way round."""
    result = rewrite(source, block, **options)

    def fault(text):
        return re.sub(r"(\w+), (\w+), (\w+) = self\.apply_qkv", r"\1, \3, \2 = self.apply_qkv", text)

    return replace(result, source=fault(result.source), method_source=fault(result.method_source))
