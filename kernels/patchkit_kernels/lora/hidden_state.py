"""What stands between the projections of an MLP: ``act(gate) * up``, or ``act(up)`` where there is no gate.

The projections of x yield gate and up each, both side by side in one tensor, or up alone. ``gate_first`` says which of
the first two is the gate; it is None for an MLP without one. Gate and up may have a limit, as in DeepSeek V4::

    act(min(gate, limit)) * max(min(up, limit), -limit)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.wide_sums import is_wider
from patchkit_kernels.ops.activations import GATED, PLAIN, Activation
from patchkit_kernels.ops.elementwise import ElementwiseOps, Results
from patchkit_kernels.ops.gated_activation import GatedActivation


class Limited:
    """The ops of a gated activation whose inputs have a limit, with those of the activation itself.

    No gradient flows where an input was cut off, and it does where one is the limit, as autograd has it.
    """

    def __init__(self, functions: ElementwiseOps, limit: float) -> None:
        self._functions, self._limit = functions, limit

    def forward(self, *inputs: Tensor) -> Tensor:
        """``act(gate) * up`` within the limit."""
        return self._functions.forward(*self._cut_off(*inputs))

    def reference(self, *inputs: Tensor) -> Tensor:
        """The same in operations that autograd differentiates."""
        return self._functions.reference(*self._cut_off(*inputs))

    def backward(self, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The gradients of gate and up."""
        grads = as_tuple(self._functions.backward(grad, *self._cut_off(*inputs)))
        return tuple(map(_zero_outside_, grads, self._within(*inputs)))

    def backward_recompute(self, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The gradient of up, and the hidden state again; ``grad`` becomes that of gate."""
        grad_up, hidden = as_tuple(self._functions.backward_recompute(grad, *self._cut_off(*inputs)))
        for found, within in zip((grad, grad_up), self._within(*inputs), strict=True):
            _zero_outside_(found, within)
        return grad_up, hidden

    def _cut_off(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return gate.clamp(max=self._limit), up.clamp(min=-self._limit, max=self._limit)

    def _within(self, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        return gate <= self._limit, (up >= -self._limit) & (up <= self._limit)


def _zero_outside_(grad: Tensor, within: Tensor) -> Tensor:
    return grad.masked_fill_(within.logical_not_(), 0.0)


def functions_of(activation: Activation, gate_first: bool | None) -> ElementwiseOps:
    """The ops from what :func:`inputs_of` gives to the hidden state, and back."""
    return PLAIN[activation] if gate_first is None else GATED[activation]


def limited(functions: ElementwiseOps, limit: float | None) -> ElementwiseOps | Limited:
    """The same of inputs that have a limit, if they have one."""
    return functions if limit is None else Limited(functions, limit)


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


def back_through(
    functions: ElementwiseOps | Limited,
    d_hidden: Tensor,
    projected: Sequence[Tensor],
    gate_first: bool | None,
    *,
    by_ops: bool = False,
    hidden_dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The gradients of what the projections of x yield, and the hidden state again, from one reading of the former.

    Args:
        functions: of :func:`functions_of`, perhaps :func:`limited`.
        d_hidden: ``[tokens, intermediate]``, contiguous, a buffer that nothing else holds: it is written over.
        projected: what the projections yield.
        gate_first: as there.
        by_ops: whether ops are called, as ``torch.compile`` needs it.
        hidden_dtype: a wider dtype in which the hidden state is read, and may be given. Not together with ``by_ops``.
    """
    inputs = inputs_of(projected, gate_first)
    if len(projected) == 1 and isinstance(functions, GatedActivation):
        packed = functions.backward_packed if by_ops else functions.run_backward_packed
        gate, up = inputs
        return [packed(d_hidden, gate, up, bool(gate_first))], d_hidden
    if by_ops or isinstance(functions, Limited):
        *others, hidden = as_tuple(functions.backward_recompute(d_hidden, *inputs))
    else:
        *others, hidden = as_tuple(functions.run_backward_recompute(d_hidden, *inputs, dtype=hidden_dtype))
    return grads_of_projected((d_hidden, *others), len(projected), gate_first), hidden


def hidden_dtype(precision: Precision, *, dropped: bool) -> torch.dtype | None:
    """The dtype in which down's adapters read the hidden state, if it may as well be made again in that; else None.

    Args:
        precision: of the MLP.
        dropped: whether dropout is drawn for these adapters, which is applied to the hidden state as it was.
    """
    _, lora, output, _ = precision
    return lora if lora is not output and not dropped and is_wider(lora, output) else None


def as_tuple(results: Results) -> tuple[Tensor, ...]:
    """What an op returns, one tensor alone included."""
    return (results,) if isinstance(results, Tensor) else results
