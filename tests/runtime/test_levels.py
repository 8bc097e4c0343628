"""What of a projection is looked at before it is computed from its tensors."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from patchkit.runtime.levels import UNFIT_VECTOR, Ready, examine, input_of


def adapted(**config):
    config = peft.LoraConfig(r=2, target_modules=["0"], **config)
    return peft.inject_adapter_in_model(config, nn.Sequential(nn.Linear(4, 6)))[0]


VECTORS = {
    "magnitude": ({"use_dora": True}, lambda layer: layer.lora_magnitude_vector["default"], "weight"),
    "bias of B": ({"lora_bias": True}, lambda layer: layer.lora_B["default"], "bias"),
}


@pytest.mark.parametrize("shape", [(), (1,), (5,), (6, 1), (1, 6)], ids=str)
@pytest.mark.parametrize("vector", VECTORS)
def test_a_vector_of_another_shape(vector, shape):
    config, holder, name = VECTORS[vector]
    layer = adapted(**config)
    given = input_of(torch.ones(2, 4))
    assert isinstance(examine(layer, given), Ready)
    setattr(holder(layer), name, nn.Parameter(torch.ones(shape)))
    assert examine(layer, given) == UNFIT_VECTOR
