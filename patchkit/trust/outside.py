"""What a proof relies on outside of the class that it is of: the code that projections were moved past.

A projection is moved past a helper because the helper neither draws nor writes in place. The hash of the class does not
see the helper, so where there is one, its code is read too: functions and methods as they are in memory, checked
against their files, and what they call by name in turn. Most classes have nothing there, and then nothing is read.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from patchkit.errors import RewriteError
from patchkit.upstream.identity import source_hash
from patchkit.upstream.live import definition_of, inner_codes, source_of
from patchkit.upstream.text import split_lines

_QUIET = frozenset({"torch", "builtins", *sys.stdlib_module_names})
"""Packages whose functions do what their names say."""

_LOOKUPS = ("__getattr__", "__getattribute__")


def outside(
    cls: type, owner: type, names: Iterable[str], used: Iterable[str], function: Any, module: nn.Module | None
) -> str:
    """A hash of what a class's proof relies on elsewhere; empty if that is nothing.

    Args:
        cls: the class.
        owner: the class in its MRO that defines ``forward``.
        names: what projections were moved past, see :attr:`patchkit.rewrite.sites.Site.passed_over`.
        used: every attribute of the object that ``forward`` names.
        function: ``forward``, for the globals that names are looked up in.
        module: an instance, whose own modules count; None if there is none.

    Raises:
        RewriteError: something there cannot be read.
    """
    code = _Code()
    for name in names:
        code.add_name(name, cls, function.__globals__, module)
    # A heir may answer for a name of forward by other means than upstream's class does.
    below = cls.__mro__[: cls.__mro__.index(owner)]
    for base in cls.__mro__:
        if base is owner or _is_quiet(base):
            continue
        for name in (*used, *_LOOKUPS):
            value = vars(base).get(name)
            if name in vars(base) and (base in below or name in _LOOKUPS or _answers(value)):
                code.add_member(value, base)
    if not code.found:
        return ""
    return hashlib.sha256("\n".join(sorted(code.found)).encode()).hexdigest()


def _is_quiet(what: Any) -> bool:
    name = what.__name__ if isinstance(what, ModuleType) else getattr(what, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in _QUIET


def _answers(value: object) -> bool:
    """Whether what stands in a class is run when the attribute is read, as a property is."""
    return hasattr(type(value), "__get__") and not isinstance(value, (FunctionType, staticmethod, classmethod))


class _Code:
    """Code that was read.

    Attributes:
        found: the module, name and hash of each function.
    """

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._seen: set[int] = set()

    # ---- names

    def add_name(self, name: str, cls: type, namespace: dict[str, Any], module: nn.Module | None) -> None:
        """What a name of :func:`patchkit.rewrite.passed_over.passed_over` stands for."""
        called, path = name.endswith("()"), name.removesuffix("()").split(".")
        if path[0] == "self":
            self._add_of_object(path[1], cls, module, name if called else "")
            return
        if not path[0]:
            raise RewriteError(f"`{name}` is called between the projections, and what it does is not known")
        missing = object()
        value: Any = namespace.get(path[0], vars(builtins).get(path[0], missing))
        for part in path[1:]:
            value = inspect.getattr_static(value, part, missing)
            value = getattr(value, "__func__", value)  # of a class
        if value is missing:
            raise RewriteError(f"`{name}` is called between the projections, and is not defined")
        self._add(value, name)

    def _add_of_object(self, name: str, cls: type, module: nn.Module | None, called: str) -> None:
        """An attribute of the object; ``called`` is how it is called, and empty where it is only read."""
        own = {} if module is None else {**module._modules, **module.__dict__}
        base = next((base for base in cls.__mro__ if name in vars(base)), None)
        if name in own and called:
            self._add(own[name], called)
        elif base is not None:
            if not _is_quiet(base):
                self.add_member(vars(base)[name], base)
        elif called and module is None:
            raise RewriteError(f"`{called}` is called between the projections, and only an instance knows it")
        elif called:
            raise RewriteError(f"`{called}` is called between the projections, and is not defined")

    # ---- values

    def add_member(self, value: Any, cls: type) -> None:
        """What stands in the namespace of a class: a method, or something that answers for an attribute."""
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        if isinstance(value, FunctionType):
            self._add_function(value, cls)
        elif hasattr(type(value), "__get__"):
            self._add_class(type(value))

    def _add(self, value: Any, name: str) -> None:
        if isinstance(value, nn.Module):
            for part in value.modules():
                if "forward" in part.__dict__:
                    raise RewriteError(f"`{name}` is called between the projections, and its forward was replaced")
                self._add_class(type(part))
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, FunctionType):
            self._add_function(value, None)
        elif not isinstance(value, (BuiltinFunctionType, torch._ops.OpOverloadPacket)):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise RewriteError(f"`{name}` is called between the projections, and is a {kind}, which cannot be read")

    def _add_class(self, cls: type) -> None:
        for base in cls.__mro__:
            if not _is_quiet(base) and id(base) not in self._seen:
                self._seen.add(id(base))
                for value in vars(base).values():
                    self.add_member(value, base)

    def _add_function(self, function: FunctionType, cls: type | None) -> None:
        """A function, what wraps it, what is in its closure, and what it calls by name."""
        while id(function) not in self._seen:
            self._seen.add(id(function))
            # The names of a wrapper are those of what it wraps: where its code stands says whose it is.
            if str(function.__globals__.get("__name__", "")).partition(".")[0] not in _QUIET:
                self._read(function)
                for value in _reached(function, cls):
                    if isinstance(value, FunctionType):
                        self._add_function(value, cls)
                    elif isinstance(value, type):
                        self._add_class(value)
            inner = getattr(function, "__wrapped__", None)
            if not isinstance(inner, FunctionType):
                return
            function = inner

    def _read(self, function: FunctionType) -> None:
        node = definition_of(function)
        code = function.__code__
        where = f"{function.__globals__.get('__name__')}.{code.co_name}"
        if node is None:
            raise RewriteError(f"{where} is called between the projections, and there is no source of it as it runs")
        if isinstance(node, ast.Lambda):  # its line need not be a statement
            digest = hashlib.sha256(ast.dump(node).encode()).hexdigest()
        else:
            lines = split_lines(source_of(function))
            digest = _hash_of("".join(lines[code.co_firstlineno - 1 : node.end_lineno]))
        self.found.add(f"{where} {digest}")


@functools.lru_cache(maxsize=256)
def _hash_of(text: str) -> str:
    """The hash of a function's text. Every layer of a model has the same helpers."""
    return source_hash(text)


def _reached(function: FunctionType, cls: type | None) -> Iterator[object]:
    """Functions and classes that a function can name: globals, of modules too, its closure, methods of its class."""
    names = [name for code in inner_codes(function.__code__) for name in code.co_names]
    values = [function.__globals__.get(name) for name in names]
    modules = [value for value in values if isinstance(value, ModuleType) and not _is_quiet(value)]
    values += [vars(module).get(name) for module in modules for name in names]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    if cls is not None:
        for name in names:
            value = inspect.getattr_static(cls, name, None)
            value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            values.append(value)
    yield from (value for value in values if isinstance(value, (FunctionType, type)) and not _is_quiet(value))
