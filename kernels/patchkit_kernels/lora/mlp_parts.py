"""What the functions of an MLP have in common: its projections as calls, and the way back through the activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from patchkit_kernels.lora.arguments import Structure, needs_of, unflatten
from patchkit_kernels.lora.call import Call, Needs
from patchkit_kernels.lora.hidden_state import Limited, as_tuple, back_through, grads_of_projected, inputs_of
from patchkit_kernels.lora.projection import Precision, dropout_scale
from patchkit_kernels.ops.dropout import masked_
from patchkit_kernels.ops.elementwise import ElementwiseOps


def calls_of(
    tensors: Sequence[Any], needed: Sequence[bool], structure: Structure, precision: Precision
) -> tuple[Call, Call]:
    """The projections that read x, and down."""
    projections, needs = unflatten(tensors, structure), needs_of(needed, structure)
    return Call(projections[:-1], needs[:-1], precision), Call(projections[-1:], needs[-1:], precision)


def split(tensors: Sequence[Any], counts: Sequence[int]) -> Iterator[Sequence[Any]]:
    """As many tensors as each count says, one after the other."""
    start = 0
    for count in counts:
        yield tensors[start : start + count]
        start += count


def reads_hidden(down_needs: Needs, *, remakes: bool) -> bool:
    """Whether gradients of down need its input: for W and A, and for B where t is made again."""
    return down_needs.weight or any(a.lora_a or (remakes and a.lora_b) for a in down_needs.adapters)


def through_activation(
    functions: ElementwiseOps | Limited,
    d_hidden: Tensor,
    projected: Sequence[Tensor],
    gate_first: bool | None,
    *,
    with_hidden: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """The hidden state again, if it is asked for, and the gradients of what the projections of x yield.

    Both at once read the inputs once. d_hidden is a buffer of ours that nothing else holds: it is written over.
    """
    if not with_hidden:
        of_inputs = as_tuple(functions.backward(d_hidden, *inputs_of(projected, gate_first)))
        return None, grads_of_projected(of_inputs, len(projected), gate_first)
    grads, hidden = back_through(functions, d_hidden, projected, gate_first, by_ops=True)
    return hidden, grads


def drop_again(buffer: Tensor | None, *, mask: Tensor | None, probability: float) -> Any:
    """What was drawn in forward applied to the hidden state made again, or to its gradient, in place."""
    return buffer if buffer is None or mask is None else masked_(buffer, mask, dropout_scale(probability))
