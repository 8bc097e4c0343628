"""Adapters that contribute, on the projections they should be on."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from patchkit.testing import MULTIMODAL_MODELS, TINY_MODELS, add_lora, relative_error, tiny_inputs, tiny_model


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_adapter_contributes_and_every_part_of_it_gets_a_gradient(name):
    model = add_lora(tiny_model(name))
    inputs = tiny_inputs(name, model)
    outputs = model(**inputs)
    with torch.no_grad(), model.disable_adapter():
        assert 0.1 < relative_error(model(**inputs).logits, outputs.logits) < 2
    outputs.loss.backward()
    trainable = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trainable.values())


@pytest.mark.parametrize("name", MULTIMODAL_MODELS)
def test_the_vision_tower_is_left_alone_unless_asked_for(name):
    def adapted(model):
        return [key for key, module in model.named_modules() if isinstance(module, LoraLayer)]

    assert not [key for key in adapted(add_lora(tiny_model(name))) if "vis" in key]
    assert [key for key in adapted(add_lora(tiny_model(name), target_modules="all-linear")) if "vis" in key]


@pytest.mark.parametrize(
    "config",
    [
        {"r": 3, "lora_alpha": 5},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"lora_dropout": 0.1},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=str,
)
def test_configurations(config):
    models = [add_lora(tiny_model("qwen2"), seed=seed, **config) for seed in (0, 0, 1)]
    weights = [
        torch.cat([parameter.flatten() for key, parameter in model.named_parameters() if "lora_" in key])
        for model in models
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    model = models[0].eval()
    inputs = tiny_inputs("qwen2", model)
    with torch.no_grad():
        adapted = model(**inputs).logits
        with model.disable_adapter():
            plain = model(**inputs).logits
    assert 0.02 < relative_error(adapted, plain) < 2


def test_mode_is_kept():
    assert not add_lora(tiny_model("llama").eval()).training
    assert add_lora(tiny_model("llama")).training
