"""What the fused functions keep between forward and backward: no tensor that upstream's own operations would not keep.

A tensor that was kept may not change before backward: autograd raises if it does, and users rely on being able to
change what upstream does not keep (a bias, a magnitude, a weight in the first layer, ...). Upstream's operations keep a
factor of a product iff the other factor needs a gradient, and nothing of a sum::

    x W^T          x iff W is trained, W iff x needs a gradient           b never
    d(x) A^T       x iff A is trained, A iff x needs a gradient
    t B^T          t iff B is trained, B iff x needs a gradient or A is trained       c never
    DoRA           g = m / norm, never m; what g scales iff m is trained

So do the functions here, but for this: where upstream keeps t, it is made again from x and A if both are there anyway;
and where upstream keeps a copy of x that dropout or a cast made, x itself is kept, so that x may not change then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.lora.call import Call
from patchkit_kernels.lora.projection import Projection
from patchkit_kernels.lora.stand_in import stand_in


def unread_input(x: Tensor, projections: Sequence[Projection]) -> Tensor | None:
    """A stand-in for x ``[..., in]`` if the gradients of these projections do not need it, else None."""
    if _trains_reader(projections) or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    return stand_in(x)


def _trains_reader(projections: Sequence[Projection]) -> bool:
    """Whether the gradient of any tensor of these projections needs their input."""
    for weight, _, adapters in projections:
        if isinstance(weight, Tensor) and weight.requires_grad:
            return True
        for adapter in adapters:
            if adapter.lora_a.requires_grad:
                return True
    return False


def read_by_backward(call: Call, *, x_needed: bool) -> list[Tensor | None]:
    """The tensors of the projections that backward reads, in the order of ``flatten``; None for the others.

    Args:
        call: the projections, and which of their tensors need a gradient.
        x_needed: whether their input does.
    """
    read: list[Tensor | None] = []
    for (weight, _, adapters), need in zip(call.projections, call.needs, strict=True):
        read += (weight if x_needed and isinstance(weight, Tensor) else None, None)
        for adapter, adapter_needs in zip(adapters, need.adapters, strict=True):
            through_b = x_needed or adapter_needs.lora_a
            read += (
                adapter.lora_a if x_needed else None,
                adapter.lora_b if through_b else None,
                None,
                adapter.factor,
            )
    return read


def keep(ctx: Any, tensors: Sequence[Tensor | None], read: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """What to save of the tensors given to an autograd function; :func:`kept` gives all of them back.

    Those that backward does not read stay on its context, for their dtypes and their places in autograd's graph: they
    exist anyway, and autograd does not ask whether they changed. A compiler finds out by itself what is read.
    """
    if torch.compiler.is_compiling():
        ctx.inputs = None
        return tensors
    ctx.inputs = tensors
    return read


def kept(ctx: Any, saved: Sequence[Tensor | None]) -> list[Any]:
    """The tensors that were given to the function, from those that :func:`keep` saved."""
    if ctx.inputs is None:
        return list(saved)
    return [given if read is None else read for read, given in zip(saved, ctx.inputs, strict=True)]
