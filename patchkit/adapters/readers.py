"""The one table of readers: which module type is read by whom."""

from __future__ import annotations

from peft.import_utils import is_bnb_4bit_available
from torch import nn

from patchkit.adapters.linear import read_linear
from patchkit.adapters.peft import peft_readers
from patchkit.adapters.protocol import Reader, Reason
from patchkit_kernels.projection import Projection


def _quantised() -> dict[type[nn.Module], Reader]:
    """bitsandbytes is imported only where it is installed; PEFT has imported it by then."""
    if not is_bnb_4bit_available():
        return {}
    from patchkit.adapters.bitsandbytes import BITSANDBYTES_READERS

    return BITSANDBYTES_READERS


_QUANTISED = _quantised()

READERS: dict[type[nn.Module], Reader] = {nn.Linear: read_linear, **_QUANTISED, **peft_readers(_QUANTISED)}


def read_projection(module: nn.Module) -> Projection | Reason:
    """The tensors of a projection module, or why it must be called instead."""
    reader = READERS.get(type(module))
    if reader is None:
        return f"it is a {type(module).__module__}.{type(module).__qualname__}"
    return reader(module)
