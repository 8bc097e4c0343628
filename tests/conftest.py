"""Shared by every test: one thread per worker, and tiny patched pairs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from patchkit.testing import add_lora, tiny_model

# Several workers share few cores: more threads than cores make small products slower, not faster.
torch.set_num_threads(1)


@pytest.fixture
def lora_model():
    """Makes ``(unpatched copy, model to patch)`` of a tiny architecture with adapters."""

    def make(name: str = "llama", **lora_config: Any) -> tuple[nn.Module, nn.Module]:
        model = add_lora(tiny_model(name), **lora_config).train()
        return copy.deepcopy(model), model

    return make
