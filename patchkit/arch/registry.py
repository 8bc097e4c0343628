"""Which architectures exist: the files of this folder, and plugins found through entry points.

A plugin is a package with an entry point in the group ``patchkit.architectures`` that loads an
:class:`~patchkit.arch.spec.Architecture` or a sequence of them. A broken plugin is named and left out; it never
breaks the others.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

import patchkit.arch
from patchkit.arch.spec import Architecture, Block
from patchkit.errors import PatchkitWarning, UnknownArchitectureError

ENTRY_POINT_GROUP = "patchkit.architectures"


def _built_in() -> Iterator[Architecture]:
    for file in pkgutil.iter_modules(patchkit.arch.__path__):
        module = importlib.import_module(f"patchkit.arch.{file.name}")
        yield from (value for value in vars(module).values() if isinstance(value, Architecture))


def _plugins() -> Iterator[Architecture]:
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = _load(entry_point)
        except Exception as error:  # a plugin may raise anything while it is imported
            warnings.warn(
                f"architecture plugin {entry_point.name!r} ({entry_point.value}) is broken and was left out: {error!r}",
                PatchkitWarning,
                stacklevel=2,
            )
        else:
            yield from loaded


def _load(entry_point: EntryPoint) -> tuple[Architecture, ...]:
    loaded = entry_point.load()
    architectures = tuple(loaded) if isinstance(loaded, Iterable) else (loaded,)
    for architecture in architectures:
        if not isinstance(architecture, Architecture):
            raise TypeError(f"expected patchkit.arch.spec.Architecture, found {type(architecture).__name__}")
    return architectures


@lru_cache(maxsize=1)
def architectures() -> dict[str, Architecture]:
    """Every registered architecture by name, sorted. A plugin may not replace a built-in one."""
    found = {architecture.name: architecture for architecture in _built_in()}
    for architecture in _plugins():
        if architecture.name in found:
            warnings.warn(
                f"architecture {architecture.name!r} of a plugin was left out: the name is taken",
                PatchkitWarning,
                stacklevel=2,
            )
        else:
            found[architecture.name] = architecture
    return dict(sorted(found.items()))


def find(name: str) -> Architecture:
    """The architecture of this name.

    Raises:
        UnknownArchitectureError: naming the near misses and how to list all.
    """
    known = architectures()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise UnknownArchitectureError(f"unknown architecture {name!r}{hint} Known: {', '.join(known)}.")


@lru_cache(maxsize=1)
def blocks_by_class() -> dict[tuple[str, str], tuple[Architecture, Block]]:
    """Every registered block by (module, class name): how a module of a live model is recognised."""
    return {
        (architecture.module, block.class_name): (architecture, block)
        for architecture in architectures().values()
        for block in architecture.blocks
    }
