"""Second derivatives: a backward that can itself be differentiated.

The fused backwards write into buffers and call kernels without a derivative. When autograd asks for a graph of the
backward (``create_graph=True``), they compute forward again with ordinary operations and let autograd differentiate it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def wants_graph() -> bool:
    """Whether the running backward must be differentiable.

    Autograd runs a backward with gradients enabled only then. Under ``torch.compile`` the flag tells of the tracing,
    not of the backward, and there are no second derivatives anyway.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def differentiable_backward(
    forward: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of ``forward`` with a graph, by computing it again.

    Args:
        forward: the function, of ordinary differentiable operations, from ``inputs`` to as many outputs as ``grads``.
        inputs: the tensors that were its inputs; None is passed through.
        needed: which of them need a gradient.
        grads: of each output; None where nothing flows back.

    Returns:
        One gradient for each input, None where none is needed or none flows.
    """
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need and tensor is not None]
    outputs = forward(*inputs)
    live = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in live], wanted, [grad for _, grad in live], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if need and tensor is not None else None for tensor, need in zip(inputs, needed, strict=True)]
