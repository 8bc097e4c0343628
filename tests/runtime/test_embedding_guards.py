"""Each guard of an adapted embedding alone: with it the reason is given, and without it the embedding is fused."""

from __future__ import annotations

import itertools

import peft
import pytest
import torch
from torch import nn

from patchkit.runtime.embedding import ReadyEmbedding, choose_embedding

IDS = torch.tensor([[1, 4, 0]])

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def layer_of(dora, adapters=1):
    torch.manual_seed(0)
    module = nn.ModuleDict({"table": nn.Embedding(5, 4)})
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["table"], use_dora=dora, init_lora_weights=False)
    model = peft.inject_adapter_in_model(config, module, "one")
    for name in ("two", "three")[: adapters - 1]:
        peft.inject_adapter_in_model(config, model, name)
    layer = model["table"]
    layer._active_adapter = ["one", "two", "three"][:adapters]
    return layer


def cast(layer, **dtypes):
    """The layer with the tensors of these names in these dtypes; ``lora`` is A and B, ``b`` is B alone."""
    names = ["one", "two", "three"][: len(layer.lora_embedding_A)]
    for what, dtype in dtypes.items():
        if what == "weight":
            tensors = [layer.base_layer.weight]
        elif what == "magnitude":
            tensors = [layer.lora_magnitude_vector["one"].weight]
        else:
            chosen = names[-1:] if what == "last" else names[:1] if what == "b" else names
            tensors = [layer.lora_embedding_B[name] for name in chosen]
            tensors += [] if what == "b" else [layer.lora_embedding_A[name] for name in chosen]
        for tensor in tensors:
            tensor.data = tensor.data.to(dtype)
    return layer


AUTOCASTS = (None, BF16, F16)


def expected(weight, lora, magnitude, autocast):
    """What upstream's own order of roundings allows, in the words of the reason; None where it is fused."""
    present = {weight, lora, magnitude} - {None}
    if magnitude is not None and torch.promote_types(lora, weight) != lora:
        return "narrower"
    if autocast is not None and F64 in present:
        return "over float64"
    if {BF16, F16} <= present | ({autocast} - {None}):
        return "mixes bfloat16 and float16"
    return None


@pytest.mark.parametrize("autocast", AUTOCASTS, ids=str)
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_every_combination_of_dtypes(dora, autocast):
    magnitudes = (F64, F32, BF16, F16) if dora else (None,)
    outcomes = set()
    for weight, lora, magnitude in itertools.product((F64, F32, BF16, F16), (F64, F32, BF16, F16), magnitudes):
        layer = cast(layer_of(dora), weight=weight, lora=lora)
        if dora:
            cast(layer, magnitude=magnitude)
        with torch.autocast("cpu", autocast or BF16, enabled=autocast is not None):
            found = choose_embedding(layer, IDS)
        case = (weight, lora, magnitude, autocast)
        reason = expected(*case)
        outcomes.add(reason)
        if reason is None:
            assert isinstance(found, ReadyEmbedding), (case, found)
            assert found.lora == (autocast or lora), case
        else:
            assert isinstance(found, str), case
            assert reason in found, case
    assert None in outcomes
    assert len(outcomes) == 2 + dora + (autocast is not None)


def no_longer_a_table(layer):
    layer.base_layer.weight.data = torch.zeros(5)


GUARDS = {
    # name: (DoRA, adapters, what is changed, words of the reason)
    "the last of three adapters in another dtype": (False, 3, lambda x: cast(x, last=F64), "differ in dtype"),
    "B in another dtype than A": (False, 1, lambda x: cast(x, b=F64), "A and B do not fit"),
    "B of another rank": (
        False, 1, lambda x: setattr(x.lora_embedding_B["one"], "data", torch.ones(4, 3)), "A and B do not fit",
    ),
    "B of another width": (
        False, 1, lambda x: setattr(x.lora_embedding_B["one"], "data", torch.ones(3, 2)), "A and B do not fit",
    ),
    "A of another vocabulary": (
        False, 1, lambda x: setattr(x.lora_embedding_A["one"], "data", torch.ones(2, 6)), "A and B do not fit",
    ),
    "a magnitude of another width": (
        True, 1, lambda x: setattr(x.lora_magnitude_vector["one"].weight, "data", torch.ones(3)), "full matrix",
    ),
    "a weight that is no matrix": (False, 1, no_longer_a_table, "full matrix"),
    "an integer weight": (
        False, 1, lambda x: setattr(x.base_layer.weight.requires_grad_(False), "data", torch.ones(5, 4).int()), "int32",
    ),
    "a weight on another device": (False, 1, lambda x: x.base_layer.to("meta"), "another device"),
    "a magnitude on another device": (True, 1, lambda x: x.lora_magnitude_vector["one"].to("meta"), "another device"),
    "an adapter on another device": (False, 1, lambda x: x.lora_embedding_A.to("meta"), "another device"),
}  # fmt: skip


@pytest.mark.parametrize("name", GUARDS)
def test_each_guard_alone(name):
    dora, adapters, change, words = GUARDS[name]
    layer = layer_of(dora, adapters)
    assert isinstance(choose_embedding(layer, IDS), ReadyEmbedding)
    change(layer)
    found = choose_embedding(layer, IDS)
    assert isinstance(found, str)
    assert words in found


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int16, torch.float32], ids=str)
def test_ids(dtype):
    found = choose_embedding(layer_of(False), IDS.to(dtype))
    assert isinstance(found, ReadyEmbedding if dtype in (torch.int64, torch.int32) else str)
