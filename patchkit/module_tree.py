"""The modules of a model, whatever they are: what cannot be looked into is passed over, and nothing of it is called.

``named_modules``, ``modules`` and attribute access are code of the model's classes. A scripted module has containers of
its own there, a class that forgot ``super().__init__()`` has none, and others compute or raise. What patchkit looks
for stands in ordinary dictionaries, so these are read, and one odd module leaves the rest of the model as accessible
as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PATCH = "__patchkit__"
"""Class attribute that marks a patched class; :mod:`patchkit.binding.patch` says what it holds."""


def unpatched(cls: type) -> type:
    """The class that a patched one was made of; any other class itself."""
    patched = [index for index, base in enumerate(cls.__mro__) if PATCH in vars(base)]
    return cls.__mro__[patched[0] + 1] if patched else cls


_WRAPPERS = ("peft.", "torch._dynamo.", "torch.nn.parallel.", "torch.distributed.")
_WRAPPED = ("base_model", "model", "_orig_mod", "module", "_fsdp_wrapped_module")


def users_model(model: nn.Module) -> nn.Module:
    """The model that a user knows by name: what PEFT, ``torch.compile`` and data parallelism have been put around."""
    while type(model).__module__.startswith(_WRAPPERS):
        children = children_of(model)
        inner = next((children[name] for name in _WRAPPED if name in children), None)
        if inner is None:
            break
        model = inner
    return model


def model_type_of(model: nn.Module) -> str:
    """The ``model_type`` of a transformers model's configuration; empty if there is none."""
    found = getattr(state_of(model).get("config"), "model_type", None)
    return found if isinstance(found, str) else ""


def forget_replaced(known: MutableMapping[tuple[Any, ...], Any], asked: type) -> None:
    """Drop what is known of classes that their modules no longer have: a cell that was run again, reloaded remote code.

    What stays is bounded by the classes that there are, and a model's own classes die after it. While only classes of
    that kind are asked for, nothing is dropped: a model of them would be looked at anew at every module.

    Args:
        known: by tuples that begin with the class.
        asked: the class that something new is to be known of.
    """
    if _is_current(asked):
        for key in list(known):
            if not _is_current(key[0]):
                known.pop(key, None)


def _is_current(cls: type) -> bool:
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found is cls


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What ``model.named_modules()`` gives where nothing is odd: outside in, in order, each module once."""
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]  # no recursion: a model may be deep, or hold itself
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        prefix = f"{name}." if name else ""
        waiting += [(f"{prefix}{key}", child) for key, child in reversed(children_of(module).items())]


def children_of(module: nn.Module) -> dict[str, nn.Module]:
    """The submodules of a module by name; none if they do not stand in a dictionary."""
    modules = state_of(module).get("_modules")
    if not isinstance(modules, dict):
        return {}
    # Of a copy: whoever reads it may change the model, or another thread does.
    return {key: child for key, child in modules.copy().items() if child is not None}


def state_of(module: nn.Module) -> dict[str, Any]:
    """The instance dictionary of a module, past what its class makes of attribute access; empty if there is none."""
    try:
        state = object.__getattribute__(module, "__dict__")
    except Exception:  # a property of that name may raise anything
        return {}
    return state if isinstance(state, dict) else {}
