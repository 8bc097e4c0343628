"""The MLP without a gate, with LoRA adapters."""

from __future__ import annotations

from torch import Tensor

from patchkit_kernels.lora.memory import Memory
from patchkit_kernels.lora.mlp_function import apply_lora_mlp
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.ops.activations import Activation


def lora_mlp(
    x: Tensor,
    up: Projection,
    down: Projection,
    activation: Activation,
    precision: Precision,
    *,
    dropout: float = 0.0,
    memory: Memory | None = None,
) -> Tensor:
    """``down(dropout(act(up(x))))`` with adapters.

    Between forward and backward x and the output of ``up`` are kept, not the activation's; less where nothing flows
    back: see :mod:`patchkit_kernels.lora.saving`.

    Args:
        x: ``[..., hidden]``; any leading shape, empty included.
        up: the up projection. Its adapters' dropout is drawn first, then that of what ``down`` is given, then that of
            ``down``'s adapters.
        down: the down projection.
        activation: name of the activation between them.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        dropout: the probability with which an element of what ``down`` is given is zeroed; the others are scaled.
        memory: what is made again in backward, a tile of tokens at a time or at once, instead of being kept; None for
            nothing. What is read for that may not change before backward: biases too.

    Returns:
        ``[..., hidden]`` in ``precision.output``.
    """
    return apply_lora_mlp(x, [up], down, activation, precision, gate_first=None, dropout=dropout, memory=memory)
