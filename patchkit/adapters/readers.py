"""The one table of readers: which module type is read by whom."""

from __future__ import annotations

from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from patchkit.adapters.linear import read_linear
from patchkit.adapters.peft import read_lora_linear
from patchkit.adapters.protocol import Reader, Reason
from patchkit_kernels.projection import Projection

READERS: dict[type[nn.Module], Reader] = {nn.Linear: read_linear, LoraLinear: read_lora_linear}


def read_projection(module: nn.Module) -> Projection | Reason:
    """The tensors of a projection module, or why it must be called instead."""
    reader = READERS.get(type(module))
    if reader is None:
        return f"it is a {type(module).__module__}.{type(module).__qualname__}"
    return reader(module)
