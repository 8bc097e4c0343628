"""Every tiny model builds, runs, trains, sees its image, and has activations that mean something."""

import pytest
import torch

from patchkit.arch.registry import architectures, blocks_by_class
from patchkit.testing import MULTIMODAL_MODELS, TINY_MODELS, add_lora, relative_error, tiny_inputs, tiny_model


@pytest.mark.parametrize("name", TINY_MODELS)
def test_runs_and_trains(name):
    model = tiny_model(name)
    outputs = model(**tiny_inputs(name, model))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    # Cross-entropy of random logits of order 1 over 128 tokens.
    assert 4 < outputs.loss.item() < 7
    assert 0.7 < outputs.logits.std().item() < 1.5
    layers = [parameter for key, parameter in model.named_parameters() if "vis" not in key and ".layers." in key]
    assert layers
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layers)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_gate_pre_activations_span_the_bend_of_the_activation(name):
    model = tiny_model(name)
    gates = []
    for key, module in model.named_modules():
        if key.endswith("gate_proj"):
            module.register_forward_hook(lambda _module, _arguments, output: gates.append(output.detach()))
    model(**tiny_inputs(name, model))
    for gate in gates:
        assert gate.min() < -4
        assert gate.max() > 4


@pytest.mark.parametrize("name", MULTIMODAL_MODELS)
def test_the_image_changes_the_logits(name):
    model = tiny_model(name)
    inputs = tiny_inputs(name, model)
    other = inputs | {"pixel_values": torch.randn_like(inputs["pixel_values"])}
    with torch.no_grad():
        assert relative_error(model(**other).logits, model(**inputs).logits) > 0.1
    assert "pixel_values" not in tiny_inputs(name, model, images=False)


@pytest.mark.parametrize("name", MULTIMODAL_MODELS)
def test_multimodal_models_run_on_text_only(name):
    model = tiny_model(name)
    assert model(**tiny_inputs(name, model, images=False)).loss.isfinite()


def test_every_registered_architecture_has_a_tiny_model_with_its_blocks():
    known = blocks_by_class()
    seen = {
        known[key][1].class_name
        for name in TINY_MODELS
        for module in tiny_model(name).modules()
        if (key := (type(module).__module__, type(module).__name__)) in known
    }
    assert seen == {block.class_name for _, block in known.values()}
    assert all(any(name.startswith(arch) for name in TINY_MODELS) or arch == "pixtral" for arch in architectures())


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma3_mm", "paligemma_gemma2"])
def test_both_kinds_of_layers(name):
    assert set(tiny_model(name).config.get_text_config().layer_types) == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_the_sliding_window_matters(name):
    narrow, wide = (tiny_model(name, sliding_window=window) for window in (5, 50))
    inputs = tiny_inputs(name, narrow)
    with torch.no_grad():
        assert relative_error(narrow(**inputs).logits, wide(**inputs).logits) > 1e-2


def test_weights_depend_on_the_seed_only_and_leave_global_random_state_alone():
    state = torch.get_rng_state()
    first, same, other = tiny_model("qwen2"), tiny_model("qwen2"), tiny_model("qwen2", seed=1)
    add_lora(first)
    assert torch.equal(state, torch.get_rng_state())
    weights = [model.get_output_embeddings().weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_biases_and_norm_weights_are_not_trivial():
    parameters = dict(tiny_model("qwen2").named_parameters())
    assert parameters["model.layers.0.self_attn.q_proj.bias"].abs().mean() > 0.1
    assert parameters["model.norm.weight"].std() > 0.1


def test_dtype_applies_to_parameters_and_not_to_buffers():
    model = tiny_model("llama", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert tiny_inputs("llava", tiny_model("llava", dtype=torch.bfloat16))["pixel_values"].dtype == torch.bfloat16


def test_overrides():
    model = tiny_model("llava", intermediate_size=96, vision_config={"hidden_size": 32})
    assert model.config.text_config.intermediate_size == 96
    assert model.config.vision_config.hidden_size == 32
    assert model.config.vision_config.image_size == 8


def test_errors_name_what_is_known():
    with pytest.raises(ValueError, match="unknown tiny model 'lama'; known: llama"):
        tiny_model("lama")
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="unknown tiny model"):
        tiny_inputs("lama", model)
    with pytest.raises(ValueError, match="at least 8"):
        tiny_inputs("llama", model, length=4)


@pytest.mark.parametrize("name", ["llama", "mistral3", "paligemma", "qwen2_vl", "gemma3_mm"])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_padding(name, padding):
    model = tiny_model(name)
    inputs = tiny_inputs(name, model, batch=3, padding=padding)
    mask = inputs["attention_mask"]
    assert mask[0].all()
    if padding == "none":
        assert mask.all()
    else:
        edge = mask[1, :3] if padding == "left" else mask[1, -3:]
        assert not edge.any()
        assert mask[1].sum() == mask.shape[1] - 3
    assert (inputs["labels"][mask == 0] == -100).all()
    assert model(**inputs).loss.isfinite()
