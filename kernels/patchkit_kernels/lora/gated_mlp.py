"""The gated MLP with LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from patchkit_kernels.lora.memory import Memory
from patchkit_kernels.lora.mlp_function import apply_lora_mlp
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.ops.activations import Activation


def lora_gated_mlp(
    x: Tensor,
    inputs: Sequence[Projection],
    down: Projection,
    activation: Activation,
    precision: Precision,
    *,
    gate_first: bool = True,
    dropout: float = 0.0,
    limit: float | None = None,
    memory: Memory | None = None,
) -> Tensor:
    """``down(dropout(act(gate(x)) * up(x)))`` with adapters.

    Args:
        x: ``[..., hidden]``; any leading shape, empty included.
        inputs: the gate and the up projection in the order in which upstream calls them, or one that yields both, side
            by side in its last dimension. Dropout is drawn in their order, then for what down is given, then for down.
        down: the down projection.
        activation: name of the activation of the gate.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        gate_first: whether the first of ``inputs``, or the first half of the joint one, is the gate.
        dropout: see :func:`~patchkit_kernels.lora.mlp.lora_mlp`.
        limit: by which gate is cut off from above, and up from both sides; None for none.
        memory: see :func:`~patchkit_kernels.lora.mlp.lora_mlp`.

    Returns:
        ``[..., hidden]`` in ``precision.output``.
    """
    return apply_lora_mlp(x, inputs, down, activation, precision, gate_first, dropout, limit, memory)
