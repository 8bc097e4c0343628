"""Who runs a block: upstream's class, patchkit, or another library that took it over.

The rule, the same in whichever order the libraries are applied:

* a library that sets ``forward`` on a module, or puts a class of its own in place of upstream's, owns that block:
  patchkit leaves it alone, and the report names the owner;
* a library that only wraps what is there and calls it (accelerate's hooks) stays around the patched forward;
* functions, norms and losses replaced in upstream's module are seen, since rewritten code runs in upstream's globals.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from patchkit.adapters.formula import name_of
from patchkit.adapters.protocol import Reason, is_own_forward

# What lets patchkit have the block, by the top-level package of its owner.
_HINTS = {"liger_kernel": "call Liger-Kernel with swiglu=False (or geglu=False) to have patchkit fuse it"}


def foreign_forward(module: nn.Module) -> Callable[..., Any] | None:
    """The ``forward`` that something set on the instance; None if the class's own runs, alone or inside hooks.

    The class's own, bound to the module, may stand there too: accelerate leaves it when it removes its hooks, and
    ``kernels.kernelize`` puts it where it has no kernel.
    """
    forward = module.__dict__.get("forward")
    if _is_accelerate_hook(forward):
        forward = module.__dict__.get("_old_forward")
    return None if is_own_forward(module, forward) else forward


def _is_accelerate_hook(forward: object) -> bool:
    """accelerate's wrapper runs ``module._old_forward``, looked up at each call."""
    return isinstance(forward, functools.partial) and forward.func.__module__ == "accelerate.hooks"


def may_hold_old_forward(forward: Callable[..., Any]) -> bool:
    """Whether a ``forward`` set on an instance may call the one that was there before it.

    A function without a closure that is bound to the module (Liger-Kernel's, those of ``kernels``) reaches everything
    through the module, so it does not notice when the class changes.
    """
    function = getattr(forward, "__func__", None)
    if not isinstance(function, FunctionType) or function.__closure__:
        return True
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return any(callable(default) for default in defaults)


def replaced_on_instance(module: nn.Module) -> Reason | None:
    """Who owns a block through a ``forward`` on the instance, in words for the report; None if nobody does."""
    forward = foreign_forward(module)
    if forward is None:
        return None
    return with_hint(f"its forward was replaced on the instance by {name_of(forward)}, which owns the block", forward)


def with_hint(reason: Reason, owner: Callable[..., Any]) -> Reason:
    """A reason, with what lets patchkit have the block if its owner is one that is known."""
    hint = _HINTS.get(name_of(owner).partition(".")[0])
    return f"{reason}; {hint}" if hint else reason
