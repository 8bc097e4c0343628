"""What decorators put around a method: read as it stands, and put around another function without running them again.

A decorator may register what it is given, count, or draw a number, so it runs once, when upstream's class is made. What
it made is a chain of functions, each of which calls the next one. A chain is copied around a rewritten function only if
that is certain to do the same:

* each of its functions was made by a decorator that the method's source names: another one was put there at run time;
* each holds the next one in a single variable of its closure, and does nothing with it but call it and read its name,
  or those of its parameters.

Every other variable of a closure is shared with upstream's chain, so counts go on where they were.

What ``GradientCheckpointingLayer`` puts around all of that is not copied: it does so again for the patched class.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch

from patchkit.upstream.classes import definition
from patchkit.upstream.known_wrappers import is_checkpointing_wrapper
from patchkit.upstream.live import LiveMethod, alike, definition_of, inner_codes
from patchkit.upstream.text import parsed

_METADATA = frozenset({"__name__", "__qualname__", "__module__", "__doc__"})
"""What a wrapper may read of the function in it: a rewritten function has the same."""

_SEES_VARIABLES = frozenset({"locals", "vars", "eval", "exec"})
"""Functions that see a variable without naming it."""


class Wrapper(NamedTuple):
    """One function of a chain.

    Attributes:
        function: the function.
        variable: the variable of its closure that holds the next one.
    """

    function: Any  # a FunctionType, which a type checker would take for a descriptor
    variable: str


def rewrapped(new: Any, method: LiveMethod) -> Callable[..., Any] | str:
    """Put around a new function what stands around a method's own, or say why that cannot be done.

    Args:
        new: the function.
        method: the method that it is to take the place of.
    """
    chain = _chain(method)
    if isinstance(chain, str):
        return chain
    if why := _why_not_from_source(chain, method) or _why_tells_by_variables(chain, new, method.function):
        return why
    for wrapper in reversed(chain):
        new = _around(wrapper, new)
    return new  # type: ignore[no-any-return]


def _chain(method: LiveMethod) -> list[Wrapper] | str:
    """What stands around a method's function, the outermost first."""
    chain: list[Wrapper] = []
    outer = method.attribute
    while is_checkpointing_wrapper(outer):
        outer = outer.__wrapped__
    while outer is not method.function:
        if not isinstance(outer, FunctionType):
            return f"it is wrapped by a {type(outer).__module__}.{type(outer).__qualname__}, which is no function"
        inner = outer.__wrapped__  # type: ignore[attr-defined]  # inspect.unwrap came this way
        contents = list(_contents(outer))
        holders = [name for name, value in contents if value is inner]
        if len(holders) != 1:
            return f"{_name(outer)}, which wraps it, does not hold it in one variable of its closure"
        if any(value is known for _, value in contents for known in (outer, *[one.function for one in chain])):
            return f"{_name(outer)}, which wraps it, refers to itself, and may keep its state there"
        if why := _why_not_only_called(outer, holders[0]):
            return f"{_name(outer)}, which wraps it, {why}"
        chain.append(Wrapper(outer, holders[0]))
        outer = inner
    return chain


def _contents(function: FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue


def _name(function: FunctionType) -> str:
    """Where a function comes from. ``functools.wraps`` gives it the names of what it wraps."""
    code = function.__code__
    return f"{function.__globals__.get('__name__', '?')}.{getattr(code, 'co_qualname', code.co_name)}"


# ---- what a wrapper does with the function in it


def _why_not_only_called(function: FunctionType, variable: str) -> str | None:
    """Why a wrapper might tell one function in its closure from another, or None if it only calls it."""
    written = definition_of(function)
    if written is None:
        return "has no source that says what runs"
    # Its own decorators and defaults ran when it was made.
    body = ast.Module(_body(written), [])
    parents = {child: node for node in ast.walk(body) for child in ast.iter_child_nodes(node)}
    for node, parent in parents.items():
        if isinstance(node, (ast.Nonlocal, ast.Global)) and variable in node.names:
            return "gives its variable another value"
        if not isinstance(node, ast.Name):
            continue
        if node.id in _SEES_VARIABLES:
            return f"calls `{node.id}`"
        called = isinstance(parent, ast.Call) and parent.func is node
        described = isinstance(parent, ast.Attribute) and parent.attr in _METADATA and isinstance(parent.ctx, ast.Load)
        if node.id == variable and not called and not described and not _reads_variables(node, parents):
            return f"does something else with it than call it (line {node.lineno})"
    return None


def _reads_variables(node: ast.AST, parents: Mapping[ast.AST, ast.AST]) -> bool:
    """Whether a name stands in ``function.__code__.co_varnames``."""
    code = parents.get(node)
    names = parents.get(code) if isinstance(code, ast.Attribute) and code.attr == "__code__" else None
    return isinstance(names, ast.Attribute) and names.attr == "co_varnames" and isinstance(names.ctx, ast.Load)


def _why_tells_by_variables(chain: Sequence[Wrapper], new: Any, old: Any) -> str | None:
    """Why a wrapper might tell two functions by the names of their variables, or None if it cannot.

    transformers' ``merge_with_config_defaults`` looks there for parameters, at their positions. New variables come
    among the old ones, which keep their order, and have none of the names that a wrapper knows.
    """
    names, before = new.__code__.co_varnames, old.__code__.co_varnames
    added = set(names) - set(before)
    same = tuple(name for name in names if name not in added) == before
    parameters = old.__code__.co_argcount + old.__code__.co_kwonlyargcount
    same = same and names[:parameters] == before[:parameters]
    for function, _ in chain:
        constants = {const for code in (function.__code__, *inner_codes(function.__code__)) for const in _flat(code)}
        if "co_varnames" in function.__code__.co_names and (not same or added & constants):
            return f"{_name(function)}, which wraps it, looks at the names of its variables"
    return None


def _flat(code: CodeType) -> Iterator[object]:
    """The constants of a code, and those in tuples among them."""
    for const in code.co_consts:
        if isinstance(const, (tuple, frozenset)):
            yield from const
        elif isinstance(const, str):
            yield const


def _body(node: ast.AST) -> list[ast.stmt]:
    return [ast.Expr(node.body)] if isinstance(node, ast.Lambda) else getattr(node, "body", [])


# ---- which decorator made a wrapper


def _why_not_from_source(chain: Sequence[Wrapper], method: LiveMethod) -> str | None:
    """Why a chain is not what the decorators in the method's source made, or None if it is.

    Each decorator makes one function at most, in their order; one that returns what it is given makes none.
    """
    node = definition(parsed(method.source), method.function.__qualname__)
    decorators = [_found(decorator, method) for decorator in node.decorator_list]
    remaining = iter(decorators)
    for wrapper in chain:
        code = wrapper.function.__code__
        if not any(code is made for found in remaining for made in _made_by(found)):
            names = ", ".join(_name(one.function) for one in chain)
            return f"it is wrapped by {names}: that is not what the decorators in its source make"
    return None


def _found(decorator: ast.expr, method: LiveMethod) -> object:
    """What a decorator's expression names, ``make`` of ``@make`` and of ``@make(1)``; None if that is not certain.

    Nothing is called: attributes of anything but modules are looked up without their descriptors.
    """
    while isinstance(decorator, ast.Call):
        decorator = decorator.func
    names: list[str] = []
    while isinstance(decorator, ast.Attribute):
        names.insert(0, decorator.attr)
        decorator = decorator.value
    if not isinstance(decorator, ast.Name):
        return None
    scopes: tuple[Mapping[str, object], ...] = (vars(method.owner), method.function.__globals__, vars(builtins))
    found = next((scope[decorator.id] for scope in scopes if decorator.id in scope), None)
    for name in names:
        namespace = found.__dict__ if isinstance(found, ModuleType) else None
        found = inspect.getattr_static(found, name, None) if namespace is None else namespace.get(name)
    return found


def _made_by(decorator: object) -> Iterator[CodeType]:
    """The code of every function that a decorator defines."""
    if isinstance(decorator, (staticmethod, classmethod, MethodType)):
        decorator = decorator.__func__
    if not isinstance(decorator, FunctionType):
        cls = decorator if isinstance(decorator, type) else type(decorator)
        contexts = torch.utils._contextlib
        if issubclass(cls, contexts._DecoratorContextManager):  # torch.no_grad and the like
            decorator = contexts.context_decorator
        else:
            decorator = inspect.getattr_static(cls, "__call__", None)
    while isinstance(decorator, FunctionType):
        for const in decorator.__code__.co_consts:
            if isinstance(const, CodeType):
                yield from inner_codes(const)
        decorator = getattr(decorator, "__wrapped__", None)  # a decorator may be decorated


# ---- copying


def _around(wrapper: Wrapper, new: object) -> FunctionType:
    """A wrapper's copy with another function in it."""
    function = wrapper.function
    cells = zip(function.__code__.co_freevars, function.__closure__, strict=True)
    closure = tuple(CellType(new) if name == wrapper.variable else cell for name, cell in cells)
    copied = alike(function, function.__code__, closure)
    copied.__wrapped__ = new  # type: ignore[attr-defined]
    return copied
