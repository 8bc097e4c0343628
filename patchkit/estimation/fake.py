"""A copy of a model whose tensors have shapes, dtypes and sizes, and no data."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from patchkit.binding.patch import patch_of
from patchkit.binding.swap import original_class, swap
from patchkit.errors import EstimateError
from patchkit.module_tree import named_modules

_PLAIN = (Tensor, nn.Parameter, FakeTensor)


def without_data(model: nn.Module, mode: FakeTensorMode, device: str = "cpu") -> nn.Module:
    """A copy of a model on fake tensors, unpatched and in training; nothing of its size is allocated.

    Args:
        model: any; its weights may be on any device, ``meta`` included. It is left as it is.
        mode: in which the copy is to be run.
        device: of the copy. Some code takes another way on a GPU.

    Raises:
        EstimateError: a tensor of it has a type of its own (a quantised or sharded weight), or it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if type(tensor) not in _PLAIN:
            raise EstimateError(
                f"{name} is a {type(tensor).__module__}.{type(tensor).__qualname__}. Only a model of plain tensors can "
                "be estimated; estimate the model as it is before it is quantised or sharded."
            )
        memo[id(tensor)] = _fake(tensor, mode, device)
    try:
        found = copy.deepcopy(model, memo)
    except Exception as error:
        raise EstimateError(f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})") from error
    changed = [(name, module) for name, module in named_modules(found) if patch_of(module) is not None]
    swap([(module, original_class(module, name)) for name, module in changed])
    for parameter in found.parameters():
        parameter.grad = None
    return found.train()


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy that has the same tensors."""
    return copy.deepcopy(model, {id(one): one for one in [*model.parameters(), *model.buffers()]})


def _fake(tensor: Tensor, mode: FakeTensorMode, device: str) -> Tensor:
    with mode:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
