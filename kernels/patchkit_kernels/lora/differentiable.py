"""A backward as ordinary operations: to differentiate it again, or to run it on batched gradients.

The fused backwards write into buffers and call kernels that have neither a derivative nor a batching rule. Where either
is asked for, they compute forward again with ordinary operations and let autograd differentiate it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import wraps
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

Backward = Callable[..., "tuple[Any, ...]"]


def without_autocast(backward: Backward) -> Backward:
    """A backward that computes in the dtypes that forward chose, whether or not it is called inside autocast.

    As ``torch.amp.custom_bwd`` does for functions whose forward leaves the choice of dtypes to autocast.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.compiler.is_compiling():  # a compiled backward runs without autocast
            return backward(ctx, *grads)
        if not _any_autocast():
            return backward(ctx, *grads)
        with ExitStack() as stack:
            for device in {grad.device.type for grad in grads if grad is not None}:
                stack.enter_context(torch.autocast(device, enabled=False))
            return backward(ctx, *grads)

    return run


def _some_autocast() -> bool:
    return True


# Asked at every backward; where torch does not say, autocast is switched off although it may be off.
_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", _some_autocast)


def wants_ordinary_operations(grads: Sequence[Tensor | None]) -> bool:
    """Whether the running backward must be differentiable, or its gradients are batched.

    Autograd runs a backward with gradients enabled only for ``create_graph=True``. Batched gradients come from
    ``is_grads_batched=True``, from ``torch.autograd.functional`` with ``vectorize=True``, and from ``torch.func.vmap``
    over a backward. Under ``torch.compile`` the flag tells of the tracing, not of the backward, and there is neither.
    """
    if torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled():
        return True
    for grad in grads:
        # torch.autograd batches by an older implementation than torch.func, whose tensors may be wrapped once more.
        if grad is not None and (
            _functorch.is_legacy_batchedtensor(grad) or _functorch.is_functorch_wrapped_tensor(grad)
        ):
            return True
    return False


def all_given(grads: Sequence[Tensor | None]) -> bool:
    """Whether none is None."""
    return NoneType not in map(type, grads)  # ``None in grads`` would ask a tensor whether it equals None


def differentiable_backward(
    forward: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of ``forward`` by computing it again, with a graph if gradients are enabled.

    Args:
        forward: the function, of ordinary differentiable operations, from ``inputs`` to as many outputs as ``grads``.
        inputs: the tensors that were its inputs; None is passed through.
        needed: which of them need a gradient.
        grads: of each output; None where nothing flows back.

    Returns:
        One gradient for each input, None where none is needed or none flows.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of a place in the graph of their own: an input that was itself computed from another one (a layer that is
        # called twice) would otherwise hand that one a gradient here, and once more when autograd goes on.
        taken = [
            tensor.view_as(tensor) if need and tensor is not None else tensor
            for tensor, need in zip(inputs, needed, strict=True)
        ]
        outputs = forward(*taken)
    wanted = [tensor for tensor, need in zip(taken, needed, strict=True) if need and tensor is not None]
    live = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    if not live:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [output for output, _ in live],
            wanted,
            [grad for _, grad in live],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if need and tensor is not None else None for tensor, need in zip(inputs, needed, strict=True)]
