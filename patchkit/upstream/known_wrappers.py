"""What transformers puts around the ``forward`` of whole classes, where the source of the method names no decorator.

``GradientCheckpointingLayer`` (transformers 5) does it for each class below it, also for one that inherits its
``forward``; ``use_experts_implementation`` does it as a decorator of a class.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType

_MAKERS = (
    ("transformers.modeling_layers", "GradientCheckpointingLayer.__init_subclass__"),
    ("transformers.integrations.moe", "use_experts_implementation"),
)
"""The functions that define the wrappers. Where their module is not loaded, they have wrapped nothing."""


def is_known_wrapper(function: object) -> bool:
    """Whether a function is one that transformers has put around a ``forward``.

    Its code must be what one of transformers' own functions defines now; a name is not enough.
    """
    return isinstance(function, FunctionType) and any(function.__code__ is code for code in _codes())


def _codes() -> Iterator[CodeType]:
    for module, path in _MAKERS:
        found: object = sys.modules.get(module)
        for name in path.split("."):
            found = inspect.getattr_static(found, name, None)
        maker = getattr(found, "__func__", found)
        if isinstance(maker, FunctionType) and maker.__module__ == module:
            yield from _inner(maker.__code__)


def _inner(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _inner(const)
