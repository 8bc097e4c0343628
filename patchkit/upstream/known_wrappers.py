"""What transformers puts around the ``forward`` of whole classes, where the source of the method names no decorator.

``GradientCheckpointingLayer`` (transformers 5) does it for each class below it, also for one that inherits its
``forward``; ``use_experts_implementation`` does it as a decorator of a class.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType

_CHECKPOINTING = ("transformers.modeling_layers", "GradientCheckpointingLayer.__init_subclass__")
_CONFIGURATION = ("transformers.modeling_utils", "PreTrainedModel.__init_subclass__")
_MAKERS = (_CHECKPOINTING, ("transformers.integrations.moe", "use_experts_implementation"))
"""The functions that define the wrappers. Where their module is not loaded, they have wrapped nothing."""


def is_known_wrapper(function: object) -> bool:
    """Whether a function is one that transformers has put around a ``forward``.

    Its code must be what one of transformers' own functions defines now; a name is not enough.
    """
    return any(_is_defined_by(function, *place) for place in _MAKERS)


def is_checkpointing_wrapper(function: object) -> bool:
    """Whether a function is what ``GradientCheckpointingLayer`` puts around the ``forward`` of each class below it.

    It checkpoints if it is the ``forward`` of the object's class, and only passes on what it is given if it is not.
    """
    return _is_defined_by(function, *_CHECKPOINTING)


def puts_checkpointing_around(hook: object) -> bool:
    """Whether an ``__init_subclass__`` is the one that does so, and nothing else."""
    maker = _function_at(*_CHECKPOINTING)
    return maker is not None and getattr(hook, "__func__", hook) is maker


def names_configuration(hook: object) -> bool:
    """Whether an ``__init_subclass__`` is that of transformers' models, which notes the class's ``config_class``."""
    maker = _function_at(*_CONFIGURATION)
    return maker is not None and getattr(hook, "__func__", hook) is maker


def _function_at(module: str, path: str) -> FunctionType | None:
    found: object = sys.modules.get(module)
    for name in path.split("."):
        found = inspect.getattr_static(found, name, None)
    function = getattr(found, "__func__", found)
    return function if isinstance(function, FunctionType) and function.__module__ == module else None


def _is_defined_by(function: object, module: str, path: str) -> bool:
    """Whether a function's code is, and does not only equal, that of one which another function defines."""
    maker = _function_at(module, path)
    return (
        maker is not None
        and isinstance(function, FunctionType)
        and any(function.__code__ is code for code in _inner(maker.__code__))
    )


def _inner(code: CodeType) -> Iterator[CodeType]:
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from _inner(const)
