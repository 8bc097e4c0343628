"""Giving patched classes to the modules of one model: all or nothing, and back.

Only ``module.__class__`` of this model's modules changes: parameters, buffers, hooks, state_dict keys and every other
instance stay as they are.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

from torch import nn

from patchkit.adapters.formula import name_of
from patchkit.adapters.protocol import is_own_forward
from patchkit.binding.ownership import foreign_forward, may_hold_old_forward
from patchkit.binding.patch import Patch, type_of_patch
from patchkit.errors import RevertError
from patchkit.module_tree import PATCH, named_modules
from patchkit.runtime.checkpointing import keep_classes

_CLASS: Any = vars(object)["__class__"]
"""Python's own attribute: a class may define ``__class__`` or ``__setattr__`` itself."""


def _give(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class, and with it every bound ``forward`` of the class that is kept on the instance.

    accelerate's hooks keep it as ``_old_forward`` and call that. What another library set as ``forward`` stays.
    """
    own = [name for name, value in module.__dict__.items() if is_own_forward(module, value)]
    _CLASS.__set__(module, cls)
    for name in own:
        module.__dict__[name] = MethodType(cls.forward, module)


@contextmanager
def _exchanged(module: nn.Module, cls: type[nn.Module]) -> Iterator[None]:
    """A module with another of the classes that :func:`swap` gives it; left alone if something else changed it."""
    before = type(module)
    mine = _unpatched(before) is _unpatched(cls)
    if mine:
        _give(module, cls)
    try:
        yield
    finally:
        if mine:
            _give(module, before)


def _unpatched(cls: type[nn.Module]) -> type[nn.Module]:
    patch: Patch | None = vars(cls).get(PATCH)
    return cls if patch is None else patch.original


def swap(classes: Iterable[tuple[nn.Module, type[nn.Module]]]) -> None:
    """Give each module its class; if one cannot take it, all have the class they had before."""
    done: list[tuple[nn.Module, type[nn.Module]]] = []
    pairs = list(classes)
    keep_classes([module for module, cls in pairs if type(module) is not cls], _exchanged)
    try:
        for module, cls in pairs:
            before = type(module)
            _give(module, cls)
            done.append((module, before))
    except BaseException:
        for module, before in reversed(done):
            _give(module, before)
        raise


def original_class(module: nn.Module, name: str) -> type[nn.Module]:
    """The class that ``revert`` gives back to a patched module.

    Raises:
        RevertError: if another class was put on top of the patched one since.
    """
    cls = type_of_patch(module)
    check_unchanged(module, name, cls)
    patch: Patch = vars(cls)[PATCH]
    return patch.original


def check_unchanged(module: nn.Module, name: str, given: type[nn.Module]) -> None:
    """Make sure that a module still has the class it was given.

    Raises:
        RevertError: if it has another one.
    """
    cls = type(module)
    forward = foreign_forward(module)
    if forward is not None and may_hold_old_forward(forward):
        raise RevertError(
            f"{name} cannot be given its class back: since patchkit.apply a forward was set on the instance by "
            f"{name_of(forward)}, which may call the patched one. Undo that first."
        )
    if cls is not given:
        raise RevertError(
            f"{name} cannot be given its class back: since apply it became "
            f"{cls.__module__}.{cls.__qualname__} (bases: {', '.join(base.__name__ for base in cls.__bases__)}). "
            "Undo that first; fully_shard and parametrizations change a module's class, for instance."
        )


class _Entry(NamedTuple):
    name: str
    module: nn.Module
    cls: type[nn.Module]


class Classes:
    """The classes that the modules of a model have now.

    What :meth:`restore` has to do is decided by what it then finds. It gives a module its class back where a patched
    class of patchkit's, or upstream's own, stands in its place. A module that has its class already, because of a
    ``revert`` in between, needs nothing, and one whose class something else replaced altogether is that one's. Only a
    class on top of a patched one is an error, since undoing what is below would undo it too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._number = next(_numbers)
        self._entries = [_Entry(name, module, type(module)) for name, module in named_modules(model)]
        _open.add(self)

    def restore(self) -> None:
        """Give every module its class back; one that came into the model since and is patched, upstream's.

        Modules that left the model are given theirs too. A second call does nothing.

        Raises:
            RevertError: a module cannot be given its class back; nothing is changed then.
        """
        if self not in _open:
            return
        targets = [(entry.module, cls) for entry in self._entries if (cls := _due(entry)) is not None]
        known = {id(entry.module) for entry in self._entries}
        added = [(name, module) for name, module in named_modules(self._model) if id(module) not in known]
        targets += [(module, original_class(module, name)) for name, module in added if _patched_in(type(module))]
        swap(targets)
        _open.discard(self)
        self._hand_on()

    def _hand_on(self) -> None:
        """What was recorded while this one was open is to restore what this one has restored.

        Two callbacks that revert at the end of a training are closed in the order in which they were opened.
        """
        own = {id(entry.module): entry.cls for entry in self._entries}
        for later in list(_open):
            if later._number > self._number:
                later._entries = [entry._replace(cls=own.get(id(entry.module), entry.cls)) for entry in later._entries]


_numbers = itertools.count()
_open: weakref.WeakSet[Classes] = weakref.WeakSet()


def _due(entry: _Entry) -> type[nn.Module] | None:
    """The class that a module has to be given, or None.

    Raises:
        RevertError: it cannot be given one.
    """
    name, module, cls = entry
    found = type(module)
    if found is cls:
        return None
    if not _patched_in(found):
        return cls if found is _unpatched(cls) else None
    original = original_class(module, name)
    # Something else may have replaced the class, and patchkit.apply patched what it put there.
    return cls if original is _unpatched(cls) else original


def _patched_in(cls: type) -> bool:
    return any(PATCH in vars(base) for base in cls.__mro__)
