"""Which architectures exist: the files of this folder, and those of plugins (see :mod:`patchkit.arch.plugins`).

What patchkit ships comes first: a plugin replaces neither an architecture nor the description of a class.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache

import patchkit.arch
from patchkit.arch.plugins import examine, plugin_architectures
from patchkit.arch.spec import Architecture, Block, description
from patchkit.errors import ArchitectureError, PatchkitWarning, UnknownArchitectureError


@lru_cache(maxsize=1)
def _built_in() -> dict[str, Architecture]:
    modules = (
        importlib.import_module(f"patchkit.arch.{one.name}") for one in pkgutil.iter_modules(patchkit.arch.__path__)
    )
    found = (value for module in modules for value in vars(module).values() if isinstance(value, Architecture))
    return {architecture.name: architecture for architecture in found}


def is_built_in(name: str) -> bool:
    """Whether an architecture is one of patchkit's own, and no plugin's."""
    return name in _built_in()


@lru_cache(maxsize=1)
def architectures() -> dict[str, Architecture]:
    """Every registered architecture by name, sorted. A plugin may not replace a built-in one."""
    found = dict(_built_in())
    owners: dict[str, str] = {}
    for plugin, architecture in plugin_architectures():
        if architecture.name not in found:
            found[architecture.name] = architecture
            owners[architecture.name] = plugin
        elif architecture != found[architecture.name]:
            owner = owners.get(architecture.name, "patchkit itself")
            _left_out(f"architecture {architecture.name!r} of {plugin} was left out: {owner} has one of this name")
    return dict(sorted({**found, **_also}.items()))


_also: dict[str, Architecture] = {}


@contextmanager
def registered_also(architecture: Architecture) -> Iterator[None]:
    """Register an architecture of a package that is not installed, as long as the ``with`` lasts.

    One that is registered already stays as it is. Not for several threads at once.

    Raises:
        ArchitectureError: it is none, or another one has its name or describes one of its classes.
    """
    try:
        examine(architecture)
    except (TypeError, ValueError) as error:
        raise ArchitectureError(f"this is no architecture: {error}") from error
    known = architectures().get(architecture.name)
    if known == architecture:
        yield
        return
    if known is not None:
        hint = "take another name" if is_built_in(known.name) else "install its package again, or take another name"
        raise ArchitectureError(f"the architecture {known.name!r} that is registered says something else; {hint}")
    for block in architecture.blocks:
        other, _ = blocks_by_class().get((architecture.module, block.class_name), (None, None))
        if other is not None:
            raise ArchitectureError(f"{other.name!r} describes {architecture.module}.{block.class_name} already")
    _also[architecture.name] = architecture
    _forget()
    try:
        yield
    finally:
        del _also[architecture.name]
        _forget()


def _forget() -> None:
    architectures.cache_clear()
    blocks_by_class.cache_clear()


def _left_out(message: str) -> None:
    warnings.warn(message, PatchkitWarning, stacklevel=3)


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


def select(patterns: Iterable[str]) -> list[Architecture]:
    """The architectures of these names or globs, each once, in the order of first mention.

    Raises:
        UnknownArchitectureError: if a name is unknown, or a glob matches none.
    """
    selected: dict[str, Architecture] = {}
    for pattern in patterns:
        if any(character in pattern for character in "*?["):
            matches = [item for name, item in architectures().items() if fnmatchcase(name, pattern)]
            if not matches:
                raise UnknownArchitectureError(f"no architecture matches {pattern!r}; `patchkit archs` lists all")
        else:
            matches = [find(pattern)]
        selected.update({item.name: item for item in matches})
    return list(selected.values())


@lru_cache(maxsize=1)
def blocks_by_class() -> dict[tuple[str, str], tuple[Architecture, Block]]:
    """Every registered block by (module, class name): how a module of a live model is recognised.

    Of two descriptions of one class patchkit's own counts, or else that of the plugin that comes first.
    """
    found: dict[tuple[str, str], tuple[Architecture, Block]] = {}
    for architecture in sorted(architectures().values(), key=lambda one: one.name not in _built_in()):
        for block in architecture.blocks:
            named = (architecture.module, block.class_name)
            known, _ = found.setdefault(named, (architecture, block))
            if known is not architecture:
                _left_out(
                    f"what architecture {architecture.name!r} of a plugin says of {'.'.join(named)} was left out: "
                    f"{known.name!r} describes that class"
                )
    return found


def foreign_description(architecture: Architecture, block: Block) -> str:
    """What a block says of its class, for the key of a proof; empty if patchkit's own architecture file says the same.

    Other names are another patch: a proof made with patchkit's own is none of it.
    """
    own = any(architecture.module == one.module and block in one.blocks for one in _built_in().values())
    return "" if own else description(block)
