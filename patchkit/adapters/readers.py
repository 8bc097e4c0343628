"""The one table of readers: which module type is read by whom."""

from __future__ import annotations

from peft.import_utils import is_bnb_4bit_available
from torch import nn

from patchkit.adapters.linear import read_linear
from patchkit.adapters.peft import peft_readers
from patchkit.adapters.protocol import Reader, Reason
from patchkit_kernels.projection import Projection


def _readers() -> dict[type[nn.Module], Reader]:
    """bitsandbytes is imported only where it is installed; PEFT has imported it by then."""
    readers: dict[type[nn.Module], Reader] = {nn.Linear: read_linear}
    if not is_bnb_4bit_available():
        return readers | peft_readers({})
    from patchkit.adapters.bitsandbytes import BITSANDBYTES_BASES, BITSANDBYTES_READERS

    return readers | BITSANDBYTES_READERS | peft_readers(BITSANDBYTES_BASES)


READERS: dict[type[nn.Module], Reader] = _readers()


def read_projection(module: nn.Module) -> Projection | Reason:
    """The tensors of a projection module, or why it must be called instead."""
    reader = READERS.get(type(module))
    if reader is None:
        return f"it is a {type(module).__module__}.{type(module).__qualname__}"
    return reader(module)
