"""The classes that the modules of a model had at some time, and giving them back, whatever happened in between."""

from __future__ import annotations

import itertools
import weakref
from typing import NamedTuple

from torch import nn

from patchkit.binding.patch import PATCH
from patchkit.binding.swap import original_class, swap
from patchkit.module_tree import named_modules


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
        return cls if found is _original(cls) else None
    original = original_class(module, name)
    # Something else may have replaced the class, and patchkit.apply patched what it put there.
    return cls if original is _original(cls) else original


def _patched_in(cls: type) -> bool:
    return any(PATCH in vars(base) for base in cls.__mro__)


def _original(cls: type[nn.Module]) -> type[nn.Module]:
    patch = vars(cls).get(PATCH)
    original: type[nn.Module] = cls if patch is None else patch.original
    return original
