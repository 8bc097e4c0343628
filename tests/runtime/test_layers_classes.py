"""Layers that are patched where they stand: one class for each upstream class, part and option."""

from __future__ import annotations

import itertools

import pytest

import patchkit
from patchkit.binding.patch import patch_of
from patchkit.testing import add_lora, tiny_model

LAYERS = {"embedding": ("embed_tokens", "get_input_embeddings"), "head": ("lm_head", "get_output_embeddings")}


def layer_of(part, precision):
    target, getter = LAYERS[part]
    model = add_lora(tiny_model("llama"), target_modules=[target])
    patchkit.apply(model, precision=precision)
    return getattr(model, getter)()


@pytest.mark.parametrize("part", LAYERS)
@pytest.mark.parametrize("order", list(itertools.permutations(["peft", "fast"])), ids=" then ".join)
def test_each_model_has_the_precision_that_it_was_given(part, order):
    found = [layer_of(part, precision) for precision in (*order, *order)]
    assert [patch_of(layer).precision for layer in found] == [*order, *order]
    classes = [type(layer) for layer in found]
    assert classes[0] is classes[2] is not classes[1] is classes[3], "one class for each precision"
