"""Tiny instances of blocks whose model takes no tokens, or not only tokens: the whole model is made small."""

from __future__ import annotations

import pytest
import torch
import transformers

from patchkit.check.numeric import tiny_instances as instances
from patchkit.check.numeric.tiny_instances import CannotBuildError, FirstOutput, TinyInstance
from patchkit.planning.survey import survey
from patchkit.testing import add_lora, run, tiny_model_from


def found_in(model, class_name):
    model = add_lora(model, target_modules="all-linear", task_type=None)
    return model, next(one.found for one in survey(model).blocks if type(one.module).__name__ == class_name)


@pytest.mark.parametrize(
    ("model_type", "head", "class_name", "whole"),
    [
        ("vit", "vision", "ViTAttention", False),  # a classifier gives a few logits
        ("clip", "vision", "CLIPMLP", False),
        ("bert", "encoder", "BertSelfAttention", True),
        ("qwen3", "causal", "Qwen3MLP", True),
        ("bert", "base", "BertSelfAttention", False),  # no labels
    ],
)
def test_the_whole_model_is_made_small(model_type, head, class_name, whole):
    model, found = found_in(tiny_model_from(model_type, head=head), class_name)
    instance = instances._small_model(model, found)
    assert isinstance(instance, TinyInstance)
    held = [module for module in instance.model.modules() if type(module).__name__ == class_name]
    assert held
    inner = instance.model.base_model.model
    assert isinstance(inner, FirstOutput) != whole
    assert ("labels" in instance.inputs) == whole
    outcome = run(instance.model, instance.inputs, input_gradients=False)
    assert any(gradient.abs().max() > 0 for gradient in outcome.gradients.values())


def test_without_a_model_around_it_there_is_none():
    _, found = found_in(tiny_model_from("qwen3", head="causal"), "Qwen3MLP")
    bare = torch.nn.ModuleList([found.module])
    with pytest.raises(CannotBuildError, match="no transformers model is around it"):
        instances._small_model(bare, found._replace(name="0"))


def test_the_first_output_is_judged_by_a_cross_entropy():
    model = tiny_model_from("vit", head="base")
    whole = FirstOutput(model)
    pixels = torch.randn(2, model.config.num_channels, model.config.image_size, model.config.image_size)
    found = whole(pixel_values=pixels)
    expected = model(pixel_values=pixels).last_hidden_state
    assert found.logits.shape == expected.shape
    rows = expected.flatten(0, -2)
    classes = torch.arange(len(rows)) % rows.shape[-1]
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(rows, classes))
    assert whole.config is model.config, "attributes are those of the model"
    assert isinstance(whole.host, transformers.PreTrainedModel)
