"""PEFT's embeddings as they are read: each state alone, with its reason, and what is read in every other."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import dora
from peft.tuners.lora.variants import DoraEmbeddingVariant
from torch import nn

from patchkit.adapters.peft_embedding import read_lora_embedding


class Scaled(nn.Embedding):
    def __init__(self):
        super().__init__(5, 4)
        self.register_buffer("embed_scale", torch.tensor(2.0), persistent=False)

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


def layer_of(*names, base=None, **config):
    """An embedding with an adapter of each name; the first of them is active."""
    model = nn.ModuleDict({"table": base or nn.Embedding(5, 4, padding_idx=1)})
    for name in names or ("default",):
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=["table"], **config), model, name)
    layer = model.table
    layer.set_adapter((names or ("default",))[0])
    return layer


def read(layer):
    found = read_lora_embedding(layer)
    assert not isinstance(found, str), found
    return found


def test_what_is_read():
    layer = layer_of()
    weight, (adapter,), padding, scale = read(layer)[:4]
    assert weight is layer.base_layer.weight
    assert adapter.lora_a is layer.lora_embedding_A["default"]
    assert adapter.lora_b is layer.lora_embedding_B["default"]
    assert (adapter.scaling, padding, scale, read(layer).magnitude) == (1.5, 1, None, None)


@pytest.mark.parametrize(
    "active", [["one"], ["two"], ["one", "two"], ["two", "one"], ["one", "none"], ["none"], []], ids=str
)
def test_adapters_in_the_order_in_which_they_are_active(active):
    """A name of which there is no adapter is passed over."""
    layer = layer_of("one", "two")
    layer._active_adapter = active
    expected = [layer.lora_embedding_A[name] for name in active if name != "none"]
    found = read(layer).adapters
    assert len(found) == len(expected)
    assert all(one.lora_a is lora_a for one, lora_a in zip(found, expected, strict=True))


def test_one_name_is_as_good_as_a_list():
    layer = layer_of("one", "two")
    layer._active_adapter = "two"
    (adapter,) = read(layer).adapters
    assert adapter.lora_a is layer.lora_embedding_A["two"]


def test_a_scaled_one():
    layer = layer_of(base=Scaled())
    assert read(layer).scale is layer.base_layer.embed_scale


def test_dora():
    layer = layer_of(use_dora=True)
    found = read(layer)
    assert found.magnitude is layer.lora_magnitude_vector["default"].weight
    assert found.adapters[0].lora_b is layer.lora_embedding_B["default"]


def scale(value):
    def change(layer):
        layer.base_layer.__dict__["_buffers"]["embed_scale"] = value

    return change


def merge(layer):
    layer.eval()
    layer.merge()


NOT_CONSTANT = "its embed_scale is not a constant of one element"
NOT_USED = "its base layer has an embed_scale that its forward does not use"
LEFT = {
    # what is done to a plain one, a scaled one (S) or one with DoRA (D): the reason
    "disabled": (lambda layer: setattr(layer, "_disable_adapters", True), "its adapters are disabled"),
    "merged": (merge, "its adapters are merged"),
    "before it": (lambda layer: setattr(layer, "input_fns", [1]), "it is a tensor parallel layer"),
    "behind it": (lambda layer: setattr(layer, "output_fns", [1]), "it is a tensor parallel layer"),
    "max_norm": (lambda layer: setattr(layer.base_layer, "max_norm", 1.0), "its base layer uses max_norm, scale_grad_by_freq or sparse"),
    "by frequency": (
        lambda layer: setattr(layer.base_layer, "scale_grad_by_freq", True), "its base layer uses max_norm, scale_grad_by_freq or sparse",
    ),
    "sparse": (lambda layer: setattr(layer.base_layer, "sparse", True), "its base layer uses max_norm, scale_grad_by_freq or sparse"),
    "a hook": (lambda layer: layer.base_layer.register_forward_hook(lambda *_: None), "base layer: a forward hook is registered on it"),
    "weight on the instance": (
        lambda layer: layer.base_layer.__dict__.update(weight=1), "base layer: weight was replaced on the instance",
    ),
    "no weight": (lambda layer: setattr(layer.base_layer, "weight", None), "base layer: its weight is not a parameter"),
    "a scale": (scale(torch.tensor(2.0)), NOT_USED),
    "a scale that is a number": (lambda layer: setattr(layer.base_layer, "embed_scale", 2.0), NOT_USED),
    "a scale that is a parameter": (
        lambda layer: setattr(layer.base_layer, "embed_scale", nn.Parameter(torch.tensor(2.0))), NOT_USED,
    ),
    "S no scale": (scale(None), NOT_CONSTANT),
    "S several": (scale(torch.ones(4)), NOT_CONSTANT),
    "S trained": (scale(torch.tensor(2.0, requires_grad=True)), NOT_CONSTANT),
    "its scaling": (lambda layer: layer.scaling.update(default=float("nan")), "its scaling is nan"),
    "no A": (lambda layer: layer.lora_embedding_A.__dict__["_parameters"].update(default=None), "its A or B is not a parameter"),
    "no B": (lambda layer: layer.lora_embedding_B.__dict__["_parameters"].pop("default"), "its A or B is not a parameter"),
    "another variant": (lambda layer: layer.lora_variant.update(default=object()), "LoRA variant object"),
    "D no A": (lambda layer: layer.lora_embedding_A.__dict__["_parameters"].update(default=1), "its A or B is not a parameter"),
    "D its scaling": (lambda layer: layer.scaling.update(default=None), "its scaling is a NoneType"),
    "D no magnitude": (
        lambda layer: setattr(layer.lora_magnitude_vector["default"], "weight", None), "its magnitude is not a parameter",
    ),
    "D another layer": (
        lambda layer: layer.lora_magnitude_vector.update({"default": nn.Identity()}), "its magnitude is kept by a Identity",
    ),
    "D not transposed": (
        lambda layer: setattr(layer.lora_magnitude_vector["default"], "fan_in_fan_out", False),
        "its magnitude is kept by a DoraEmbeddingLayer",
    ),
    "D a hook": (
        lambda layer: layer.lora_magnitude_vector["default"].register_forward_hook(lambda *_: None),
        "its magnitude: a forward hook is registered on it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_peft(case):
    change, reason = LEFT[case]
    layer = layer_of(base=Scaled() if case.startswith("S ") else None, use_dora=case.startswith("D "))
    read(layer)
    change(layer)
    assert read_lora_embedding(layer) == reason


@pytest.mark.parametrize(
    "name",
    ["base_layer", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "_check_forward_args", "_embed",
     "_get_embed_scale", "get_base_layer"],
)  # fmt: skip
def test_what_is_set_on_the_instance(name):
    layer = layer_of()
    layer.__dict__[name] = lambda *_: None
    assert read_lora_embedding(layer) == f"{name} was replaced on the instance"


@pytest.mark.parametrize("name", ["weight", "get_weight_norm", "get_lora_weight"])
def test_what_is_set_on_the_magnitude(name):
    layer = layer_of(use_dora=True)
    layer.lora_magnitude_vector["default"].__dict__[name] = lambda *_: None
    assert read_lora_embedding(layer) == f"its magnitude: {name} was replaced on the instance"


def test_another_class_with_a_scale_of_its_own():
    class Odd(Scaled):
        pass

    said = read_lora_embedding(layer_of(base=Odd()))
    assert said.startswith("its base layer is a ")
    assert said.endswith("Odd")


@pytest.mark.parametrize("active", [["dora", "plain"], ["plain", "dora"]])
def test_dora_is_alone(active):
    layer = layer_of("dora", use_dora=True)
    inject_plain(layer)
    layer._active_adapter = active
    assert read_lora_embedding(layer) == "several adapters are active, not all of them plain LoRA"
    layer._active_adapter = ["plain"]
    assert read(layer).magnitude is None
    layer._active_adapter = ["dora", "none"]
    assert read(layer).magnitude is not None


def inject_plain(layer):
    model = nn.ModuleDict({"table": layer})
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["table"]), model, "plain")
    assert isinstance(layer.lora_variant["dora"], DoraEmbeddingVariant)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("caching", [True, False])
def test_pefts_cache_of_norms(training, caching, monkeypatch):
    """It counts where nothing is trained."""
    layer = layer_of(use_dora=True).train(training)
    monkeypatch.setattr(dora, "ENABLE_DORA_CACHING", caching, raising=False)
    said = read_lora_embedding(layer)
    assert (said == "PEFT's DoRA caching is on") == (caching and not training)
