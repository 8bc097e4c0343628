"""Operations without what autograd and autocast do on their way, where neither has anything to do.

Inside of an autograd function no graph is made, and the dtypes are chosen. Autograd's kernels run before each operation
all the same, find that out, and count a version for what is written over: a fifth of an operation's time on a small
tensor. What is written over here is a buffer of the function's own, of which nobody asks the version.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from patchkit_kernels.ops.registration import dispatch_modes

_below_autograd: Callable[[], AbstractContextManager[Any]] = torch._C._AutoDispatchBelowADInplaceOrView
_without_autocast: Callable[[], AbstractContextManager[Any]] = torch._C._DisableAutocast
_any_autocast: Callable[[], bool] = torch._C._is_any_autocast_enabled
_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_is_wrapped: Callable[[Tensor], bool] = _functorch.is_functorch_wrapped_tensor


def bare(compute: Callable[..., Any], *arguments: Any) -> Any:
    """``compute(*arguments)``, a function of tensors that writes over none but its own."""
    if dispatch_modes() or torch.compiler.is_compiling():  # others look at the operations, or trace them
        return compute(*arguments)
    with _below_autograd():
        if _any_autocast():
            with _without_autocast():
                return compute(*arguments)
        return compute(*arguments)


def at_once(compute: Callable[..., Any], *arguments: Any) -> Any:
    """The same with all that goes before operations: for functions of other libraries."""
    return compute(*arguments)


def applier(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply``, in the case that it looks for first and nearly always finds.

    No transform of torch.func is active, and no tensor is what is left of one that has ended. The first argument
    is no tensor, all others are.
    """
    without_a_look: Callable[..., Any] = torch._C._FunctionBase.__dict__["apply"].__get__(None, function)

    def apply(*arguments: Any) -> Any:
        if _transforms_active():
            return function.apply(*arguments)  # type: ignore[no-untyped-call]
        for argument in arguments[1:]:
            if _is_wrapped(argument):
                return function.apply(*arguments)  # type: ignore[no-untyped-call]
        return without_a_look(*arguments)

    return apply
