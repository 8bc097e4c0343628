"""Selective activation checkpointing sees the gated activations by name, as it sees ``aten.mm``."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from training_runs import LAYERS

import patchkit
from patchkit.testing import compare_runs, run, tiny_inputs
from patchkit.testing.measure import OperationCounter

ACTIVATIONS = {"llama": torch.ops.patchkit.swiglu.default, "gemma3": torch.ops.patchkit.geglu_tanh.default}
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


def checkpoint_layers(model, kept):
    """Checkpoint each decoder layer, keeping the outputs of some operations; returns all that the policy was asked."""
    asked = Counter()

    def policy(context, op, *args, **kwargs):
        asked[op] += 1
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    for layer in model.base_model.model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)
    return asked


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_activation(architecture, keep, lora_pair):
    plain, model, _ = lora_pair(architecture)
    inputs = tiny_inputs(architecture, model)
    reference = run(plain, inputs)
    patchkit.apply(model)
    op = ACTIVATIONS[architecture]
    asked = checkpoint_layers(model, {op} if keep else set())
    with OperationCounter() as executed:
        candidate = run(model, inputs)
    findings = compare_runs(reference, candidate)
    assert findings.passed, findings.worst
    assert asked[op] == LAYERS
    assert executed.by_operation[op] == (LAYERS if keep else 2 * LAYERS)


@pytest.mark.parametrize("memory", [None, "recompute", "tiled:2"])
@pytest.mark.parametrize("architecture", ACTIVATIONS)
def test_matrix_products(architecture, memory, lora_pair):
    """The usual policy: keep what matrix products yield, compute the rest again."""
    plain, model, _ = lora_pair(architecture)
    inputs = tiny_inputs(architecture, model)
    reference = run(plain, inputs)
    patchkit.apply(model, memory=memory)
    asked = checkpoint_layers(model, set(PRODUCTS))
    findings = compare_runs(reference, run(model, inputs))
    assert findings.passed, findings.worst
    assert sum(asked[op] for op in PRODUCTS) > 0
