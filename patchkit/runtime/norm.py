"""The ``forward`` of a norm that keeps its input, and computes itself again in backward.

Norms of transformers cast their input to float32 and compute with the copy, which autograd keeps: 4 bytes for each
element of a bfloat16 input that takes 2. Here the norm runs without a graph, and in backward once more with one. Both
times it is upstream's own method that runs, on the same numbers, so that outputs and gradients have upstream's bits.

It is the idea of checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174). ``torch.utils.checkpoint`` reads
the weight anew in backward; here it is a saved tensor, so that autograd says so where it was changed in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.runtime.levels import PLAIN_TENSORS, input_of
from patchkit.upstream.norms import Norm
from patchkit_kernels.lora.differentiable import differentiable_backward, without_autocast

_NARROW = (torch.bfloat16, torch.float16)
_NUMBERS = (bool, int, float, type(None))


class RemadeNorm(torch.autograd.Function):
    """See this file's docstring."""

    @staticmethod
    def forward(
        ctx: Any, norm: Norm, numbers: dict[str, Any], names: Sequence[str], x: Tensor, *tensors: Tensor
    ) -> Tensor:
        """The norm of x; saves x and the norm's tensors."""
        ctx.norm, ctx.numbers, ctx.names = norm, numbers, names
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.save_for_backward(x, *tensors)
        return _computed(norm, numbers, names, x, *tensors)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of the tensors that need one."""
        device, dtype, enabled = ctx.autocast

        def again(*inputs: Tensor) -> list[Tensor]:
            with torch.autocast(device, dtype, enabled):
                return [_computed(ctx.norm, ctx.numbers, ctx.names, *inputs)]

        found = differentiable_backward(again, ctx.saved_tensors, ctx.needs_input_grad[3:], [grad])
        return None, None, None, *found


class _StandIn:
    """What a norm's methods take for the norm: it has the attributes that they read, and no others."""

    def __init__(self, norm: Norm, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes, _StandIn__norm=norm)

    def __getattr__(self, name: str) -> Any:
        for known, function in self.__dict__["_StandIn__norm"].methods:
            if known == name:
                return partial(function, self)  # not kept: it would hold itself until the garbage collector comes
        raise AttributeError(name)


def _computed(norm: Norm, numbers: dict[str, Any], names: Sequence[str], x: Tensor, *tensors: Tensor) -> Tensor:
    attributes = {**numbers, **dict(zip(names, tensors, strict=True))}
    made: Tensor = norm.function(_StandIn(norm, attributes), x)
    return made


def make_norm_forward(cls: type[nn.Module], norm: Norm) -> Callable[..., Any]:
    """A ``forward`` that keeps its input alone where upstream would keep a copy, and else runs upstream's.

    Args:
        cls: the class of the norm.
        norm: what it computes with.
    """
    methods = {"forward": norm.function, **dict(norm.methods)}

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (args or kwargs) and _is_saving(x) and _unchanged(cls, methods, self):
            read = _read(self, norm)
            if read is not None:
                numbers, tensors = read
                return RemadeNorm.apply(norm, numbers, tuple(tensors), x, *tensors.values())  # type: ignore[no-untyped-call]
        return cls.forward(self, x, *args, **kwargs)

    return forward


def _is_saving(x: Tensor) -> bool:
    """Whether a graph would keep more than the input.

    A view keeps all of what it is a view of. Compilers decide for themselves what is made again.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or type(x) not in PLAIN_TENSORS:
        return False
    if x.dtype not in _NARROW or not x.requires_grad or isinstance(input_of(x), str):
        return False
    return x.untyped_storage().nbytes() <= 4 * x.numel()


def _unchanged(cls: type[nn.Module], methods: dict[str, Callable[..., Any]], module: nn.Module) -> bool:
    """Whether the methods that were looked at are those that upstream would call."""
    return all(getattr(cls, name, None) is found and name not in vars(module) for name, found in methods.items())


def _read(module: nn.Module, norm: Norm) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The numbers and tensors of a norm by name; None if something is neither. What it lacks, it does not need."""
    numbers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name in norm.attributes:
        try:
            found = getattr(module, name)
        except AttributeError:
            continue
        if type(found) in PLAIN_TENSORS:
            tensors[name] = found
        elif type(found) in _NUMBERS:
            numbers[name] = found
        else:
            return None
    return numbers, tensors
