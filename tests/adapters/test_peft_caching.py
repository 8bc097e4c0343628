"""PEFT's cache of DoRA's weight norms: where it is on and used, PEFT computes; the same for a linear layer and an embedding."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.lora import dora
from torch import nn

from patchkit.adapters.registry import read_embedding, read_projection
from patchkit.testing import randomise_adapter

READ = {"linear": read_projection, "embedding": read_embedding}


def adapted(kind: str, *, use_dora: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(4, 6), "embedding": nn.Embedding(5, 4)})
    config = peft.LoraConfig(r=2, target_modules=[kind], use_dora=use_dora, init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    randomise_adapter(model)
    return model[kind]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("caching", [True, False, None], ids=["on", "off", "a PEFT without it"])
@pytest.mark.parametrize("use_dora", [True, False], ids=["DoRA", "LoRA"])
@pytest.mark.parametrize("kind", READ)
def test_where_the_cache_counts(kind, use_dora, caching, training, monkeypatch) -> None:
    """In eval mode alone: only there does PEFT keep the norms of the call before."""
    layer = adapted(kind, use_dora=use_dora).train(training)
    if caching is None:
        monkeypatch.delattr(dora, "ENABLE_DORA_CACHING", raising=False)
    else:
        monkeypatch.setattr(dora, "ENABLE_DORA_CACHING", caching, raising=False)
    found = READ[kind](layer)
    if caching and use_dora and not training:
        assert isinstance(found, str)
        assert "cach" in found
    else:
        assert len(found.adapters) == 1


@pytest.mark.parametrize("kind", READ)
def test_the_mode_of_the_part_that_caches_counts(kind, monkeypatch) -> None:
    """It can be another one than that of the layer."""
    monkeypatch.setattr(dora, "ENABLE_DORA_CACHING", True, raising=False)
    for layer_trains in (True, False):
        for part_trains in (True, False):
            layer = adapted(kind).train(layer_trains)
            layer.lora_magnitude_vector["default"].train(part_trains)
            assert isinstance(READ[kind](layer), str) is not part_trains


@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_factors_of_an_embedding_that_are_no_parameters(factor, use_dora) -> None:
    layer = adapted("embedding", use_dora=use_dora)
    factors = getattr(layer, f"lora_embedding_{factor}")
    factors._parameters["default"] = None
    assert read_embedding(layer) == "its A or B is not a parameter"


@pytest.mark.parametrize("use_dora", [False, True])
def test_factors_of_an_embedding_are_where_they_belong(use_dora) -> None:
    layer = adapted("embedding", use_dora=use_dora)
    (adapter,) = read_embedding(layer).adapters
    assert adapter.lora_a is layer.lora_embedding_A["default"]
    assert adapter.lora_b is layer.lora_embedding_B["default"]
