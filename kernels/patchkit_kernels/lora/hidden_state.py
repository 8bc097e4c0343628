"""What stands between the projections of an MLP: ``act(gate) * up``, or ``act(up)`` where there is no gate.

The projections of x yield gate and up each, both side by side in one tensor, or up alone. ``gate_first`` says which of
the first two is the gate; it is None for an MLP without one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.ops.activations import GATED, PLAIN, Activation
from patchkit_kernels.ops.elementwise import ElementwiseOps, Results


def functions_of(activation: Activation, gate_first: bool | None) -> ElementwiseOps:
    """The ops from what :func:`inputs_of` gives to the hidden state, and back."""
    return PLAIN[activation] if gate_first is None else GATED[activation]


def inputs_of(projected: Sequence[Tensor], gate_first: bool | None) -> Sequence[Tensor]:
    """Gate and up, each ``[tokens, intermediate]``, given apart or as two halves (views) of one tensor; or up alone."""
    if gate_first is None:
        return projected
    first, second = projected if len(projected) == 2 else projected[0].chunk(2, -1)
    return (first, second) if gate_first else (second, first)


def grads_of_projected(grads: Sequence[Tensor], count: int, gate_first: bool | None) -> list[Tensor]:
    """From the gradients of what :func:`inputs_of` gave, those of the ``count`` tensors that the projections yield."""
    in_order = list(grads[::-1] if gate_first is False else grads)
    return in_order if count == len(in_order) else [torch.cat(in_order, -1)]


def as_tuple(results: Results) -> tuple[Tensor, ...]:
    """What an op returns, one tensor alone included."""
    return (results,) if isinstance(results, Tensor) else results
