"""MLPs that keep nothing as wide as their hidden state: against those that do, over every structure."""

from __future__ import annotations

import pytest
import torch
from projection_cases import ACTS, plain_mlp, plain_ungated_mlp, all_tensors, make, precise, seeds, tensors
from structures import ALL, BIASED, DORA, DORA_DROPPED, DROPPED, LORA, STRUCTURES, assert_equal, factors_of, first_order
from structures import mlp, train, training_sets, ungated_mlp

from patchkit_kernels.lora import mlp_function
from patchkit_kernels.lora.memory import RECOMPUTE, TILED, Memory

MLPS = {name: make for name, make in STRUCTURES.items() if "mlp" in name}


@pytest.mark.parametrize("memory", [RECOMPUTE, Memory(3)])
@pytest.mark.parametrize("name", MLPS)
def test_x(name, memory, monkeypatch):
    base = MLPS[name]()
    tall = MLPS[name](tokens=(2, 13), memory=memory)
    for trained in training_sets(tall):
        train(tall, trained)
        if not trained:
            continue
        try:
            expected = first_order(tall, tall.upstream)
        except RuntimeError as e:
            continue
        assert_equal(expected, first_order(tall, tall.fused), (name, trained))
