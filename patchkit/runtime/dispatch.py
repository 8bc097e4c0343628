"""The ``forward`` of a patched class: the rewritten one as long as it stands for what upstream's class would run.

The rewritten forward takes the block's projections from where ``torch.nn.Module`` keeps them, and it was made from one
forward of the upstream class. Whoever puts another forward on that class afterwards, or gives it (or a subclass) an
attribute with a projection's name or another way to look attributes up, is heard: upstream's forward runs then.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import skip_code

from patchkit.adapters.formula import name_of, nothing_changed
from patchkit.adapters.protocol import Reason


class PatchedForward:
    """A descriptor that binds like a function, and decides at each look-up which function that is.

    Args:
        function: the rewritten forward.
        original: the upstream class.
        attribute: what stood in its namespace, or that of one of its bases, as ``forward``.
        names: the attributes that the rewritten forward looks up past the class.
    """

    def __init__(
        self, function: Callable[..., Any], original: type[nn.Module], attribute: object, names: tuple[str, ...]
    ) -> None:
        self.function: Any = function
        self._original, self._attribute, self._names = original, attribute, names
        self._unchanged: dict[type, Callable[[], bool]] = {}

    def __set_name__(self, owner: type[nn.Module], name: str) -> None:
        self._owner = owner

    def __get__(self, instance: nn.Module | None, owner: type[nn.Module]) -> Callable[..., Any]:
        if torch.compiler.is_compiling():
            displaced = _while_tracing(self, owner)
        else:
            unchanged = self._unchanged.get(owner)
            displaced = None if unchanged is not None and unchanged() else self.displaced(owner)
        if displaced is None:
            return self.function.__get__(instance, owner)  # type: ignore[no-any-return]
        above: Any = super(self._owner, owner if instance is None else instance)
        found: Callable[..., Any] = above.forward
        return found

    def as_function(self) -> Callable[..., Any]:
        """A function that decides in the same way at each call.

        transformers' ``GradientCheckpointingLayer`` puts a function around what a new class has as ``forward``, looks
        itself up on the class, and is compiled only if what it finds there is itself and no descriptor.
        """

        @functools.wraps(self.function)
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.__get__(module, type(module))(*args, **kwargs)

        return forward

    def displaced(self, cls: type[nn.Module]) -> Reason | None:
        """Why modules of this class, the patched one or a subclass, run upstream's forward; None if they do not."""
        reason = displaced(cls, self._original, self._attribute, self._names)
        if reason is None:
            self._unchanged[cls] = nothing_changed(cls, self._original)
        return reason


def displaced(
    cls: type[nn.Module], original: type[nn.Module], attribute: object, names: tuple[str, ...]
) -> Reason | None:
    """The same, for a class that need not be patched yet; see :class:`PatchedForward` for the arguments."""
    current = inspect.getattr_static(original, "forward")
    if current is not attribute:
        return f"its forward was replaced by {name_of(current)} since patchkit.apply"
    for base in cls.__mro__[:-1]:
        for name in names:
            if name in vars(base):
                return f"{base.__module__}.{base.__qualname__} defines {name} itself"
    for name, default in (("__getattr__", nn.Module), ("__getattribute__", object)):
        if inspect.getattr_static(cls, name) is not inspect.getattr_static(default, name):
            return f"its class has a {name} of its own"
    return None


_while_tracing = torch.compiler.assume_constant_result(PatchedForward.displaced)  # type: ignore[no-untyped-call]

# ``module.compile()`` compiles what a module calls, each function by itself: first of all a look-up of ``forward``. The
# bound method that this gives would be made again by a look-up of ``forward``, without end.
skip_code(PatchedForward.__get__.__code__)  # type: ignore[no-untyped-call,unused-ignore]
