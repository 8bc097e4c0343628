"""What is kept may be moved to the host's memory: by torch, and by transformers' gradient checkpointing."""

from __future__ import annotations

import copy
import inspect
from contextlib import nullcontext

import pytest
import torch
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel, modeling_utils

import patchkit
from patchkit.testing import add_lora, fused_calls, tiny_inputs, tiny_model

OFFLOADS = (
    "offload"
    in inspect.signature(
        getattr(PreTrainedModel, "activation_checkpointing_enable", PreTrainedModel.gradient_checkpointing_enable)
    ).parameters
)
"""Whether this release of transformers offloads what its checkpoints keep."""

STATES = {
    "plain": {},
    "dropout": {"lora_dropout": 0.3},
    "DoRA": {"use_dora": True},
    "head": {"target_modules": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]},
}
WAYS = ["save_on_cpu", "checkpoints in save_on_cpu", "checkpoints of transformers"]


def step(model, inputs, context):
    torch.manual_seed(0)
    with context:
        loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def offloading(model, way):
    """Make a model move what it keeps; what forward is to run in."""
    if way == "checkpoints of transformers":
        model.activation_checkpointing_enable(offload=True)
        return nullcontext()
    if way.startswith("checkpoints"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return save_on_cpu()


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_patched_blocks_are_offloaded_bit_for_bit(way, state, loss, monkeypatch):
    if not torch.accelerator.is_available():  # memory is pinned for a device, and cannot be without one
        monkeypatch.setattr(modeling_utils, "save_on_cpu", lambda **_: save_on_cpu(), raising=False)
    if way == WAYS[2] and not OFFLOADS:
        pytest.skip("this release of transformers does not offload")
    plain = add_lora(tiny_model("llama"), **STATES[state])
    inputs = tiny_inputs("llama", plain)
    model = copy.deepcopy(plain)
    patchkit.apply(model, loss=loss)
    usual = copy.deepcopy(model)
    expected = step(usual, inputs, nullcontext())
    context = offloading(model, way)
    with fused_calls() as calls:
        found = step(model, inputs, context)
    assert {"lora_gated_mlp", "lora_projections"} <= set(calls)
    assert torch.equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.equal(found[1][name], gradient), name
    reference = step(plain, inputs, nullcontext())
    assert torch.allclose(found[0], reference[0], rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_is_moved_is_what_the_estimate_says():
    """Every tensor that save_on_cpu is given counts; a storage that several nodes save is moved for each of them."""
    model = add_lora(tiny_model("llama", num_hidden_layers=4)).train()
    patched = copy.deepcopy(model)
    patchkit.apply(patched)
    moved = []

    def pack(tensor):
        moved.append(tensor.detach().clone())
        return moved[-1]

    ids = torch.ones(1, 24, dtype=torch.int64)
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        patched(**inputs).loss.backward()
    found = patchkit.estimate(model, tokens=24, loss=False).variant("patched, loss=False, offloaded")
    assert found.host == pytest.approx(sum(one.nbytes for one in moved), rel=0.05)
