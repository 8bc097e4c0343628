"""The low-rank products: in which operations x is dropped."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.lora.low_rank import drop, reduce
from patchkit_kernels.lora.projection import Adapter, Precision
from patchkit_kernels.ops.dropout import pack_mask

X = torch.linspace(-1.0, 1.0, 3 * 8).view(3, 8)
MASK = torch.arange(3 * 8).view(3, 8) % 3 > 0
ADAPTER = Adapter(torch.ones(2, 8), torch.ones(5, 2), 2.0, dropout=0.5)
PRECISION = Precision(*[torch.float32] * 4)


class Operations(TorchDispatchMode):
    """Notes which operations run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("use", "in_one"),
    [
        (lambda bits: drop(X, bits, ADAPTER), True),
        (lambda bits: drop(X, bits, ADAPTER, differentiable=True), False),
        (lambda bits: reduce(X, [ADAPTER], [bits], PRECISION)[0], True),
        (lambda bits: reduce(X, [ADAPTER], [bits], PRECISION, differentiable=True)[0], False),
    ],
    ids=["drop", "drop, differentiable", "reduce", "reduce, differentiable"],
)
def test_dropping_is_one_operation_unless_it_is_to_be_differentiated(use, in_one):
    bits = pack_mask(MASK)
    with Operations() as seen:
        found = use(bits)
    assert ("patchkit.masked.default" in seen.names) == in_one
    dropped = X * MASK * 2.0
    assert torch.allclose(found, dropped if found.shape == X.shape else dropped @ ADAPTER.lora_a.t())
