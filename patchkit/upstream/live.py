"""The source text of a live class's method, checked to be what is really running.

Source on disk can differ from the code in memory: another library replaced the method, the file was edited after the
import, or a decorator wrapped it. Rewriting such text would compute something else, so each case is refused by name.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple, TypeGuard

from patchkit.errors import RewriteError, UndecidedError
from patchkit.upstream.classes import definition, first_line
from patchkit.upstream.known_wrappers import is_known_wrapper
from patchkit.upstream.text import parsed


class LiveMethod(NamedTuple):
    """A method as it runs, and the text it was compiled from.

    Attributes:
        owner: the class in the MRO that defines it.
        attribute: what stands in the class's namespace: the function, or what decorators made of it.
        function: the function itself, without decorators.
        source: text of the whole file.
        filename: the file.
    """

    owner: type
    attribute: Any
    function: Any  # a FunctionType, which a type checker would take for a descriptor
    source: str
    filename: str


def read_method(cls: type, name: str) -> LiveMethod | str:
    """Find a method's function and source, or say why they cannot be used.

    Args:
        cls: a class; the method may be inherited.
        name: name of the method.
    """
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    if owner is None:
        return f"it has no method {name}"
    attribute = vars(owner)[name]
    try:
        function: Any = inspect.unwrap(attribute) if callable(attribute) else attribute
    except ValueError:
        return f"its {name} is wrapped in a circle"
    if not isinstance(function, FunctionType):
        return f"its {name} is a {type(function).__qualname__}, not a function"
    owner = _defining(cls, name, owner)
    if function.__module__ != owner.__module__ or function.__qualname__ != f"{owner.__qualname__}.{name}":
        return f"its {name} was replaced by {function.__module__}.{function.__qualname__}"
    filename = function.__code__.co_filename
    source = source_of(function)
    if "<locals>" in function.__qualname__:
        return f"its class {owner.__qualname__} is defined in a function, so its source is not all that it depends on"
    if not source:
        return f"there is no source of {owner.__module__}.{owner.__qualname__}.{name} ({filename})"
    try:
        code = find_code(compiled(source, filename), function.__qualname__)
    except UndecidedError as error:
        return str(error)
    if code != function.__code__:
        return f"the code of {name} in memory is not that of {filename}:{function.__code__.co_firstlineno}"
    return LiveMethod(owner, attribute, function, source, filename)


def _defining(cls: type, name: str, owner: type) -> type:
    """The class that defines a method which ``owner`` inherits, and around which transformers put a wrapper for it."""
    attribute = vars(owner)[name]
    while is_known_wrapper(attribute):
        attribute = attribute.__wrapped__
        owner = next((base for base in cls.__mro__ if vars(base).get(name) is attribute), owner)
    return owner


def source_of(function: FunctionType) -> str:
    """The text of the file that a function was compiled from, as it is now; empty if there is none."""
    return "".join(linecache.getlines(function.__code__.co_filename, function.__globals__))


@dataclass(frozen=True, eq=False)
class Compiled:
    """A module's text and its code.

    Attributes:
        source: the text.
        code: what Python makes of it.
    """

    source: str
    code: CodeType


@lru_cache(maxsize=64)
def compiled(source: str, filename: str) -> Compiled | None:
    """The code of a module's text, or None if it does not compile."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream's are not the user's business
            return Compiled(source, compile(source, filename, "exec", dont_inherit=True))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def find_code(module: Compiled | None, path: str) -> CodeType | None:
    """The code of the method that Python keeps under this dotted path, or None if there is none.

    Raises:
        UndecidedError: there are several, and a condition decides which of them counts.
    """
    try:
        return None if module is None else _code_at(module, path)
    except UndecidedError:
        raise
    except RewriteError:
        return None


@lru_cache(maxsize=256)
def _code_at(module: Compiled, path: str) -> CodeType | None:
    """Code by the place of its definition. Every instance of a class asks for the same."""
    node = definition(parsed(module.source), path, module.code.co_filename)
    return next((code for code in inner_codes(module.code) if _is_of(code, node)), None)


def definition_of(function: FunctionType) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
    """Where a function stands in its file, nested or not; None if the file does not say, or not what runs."""
    source, code = source_of(function), function.__code__
    module = compiled(source, code.co_filename) if source else None
    if module is None or not any(found == code for found in inner_codes(module.code)):
        return None
    try:
        found = [node for node in _definitions(source) if _is_of(code, node)]
    except RewriteError:
        return None
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=8)
def _definitions(source: str) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, ...]:
    """Every function in a text, nested ones too. Many functions of one file are asked for, one after the other.

    Raises:
        RewriteError: the text does not parse.
    """
    return tuple(filter(_is_definition, ast.walk(parsed(source))))


def inner_codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and every one in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from inner_codes(const)


def _is_definition(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda]:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def _is_of(code: CodeType, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    return node.name == code.co_name and first_line(node) == code.co_firstlineno


def with_code(function: FunctionType, code: CodeType) -> FunctionType:
    """A function with other code but the same globals, defaults, closure cells and metadata.

    Raises:
        ValueError: if the code needs a variable of an enclosing scope that the function does not have.
    """
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    missing = [name for name in code.co_freevars if name not in cells]
    if missing:
        raise ValueError(f"the rewritten code needs {', '.join(missing)} of an enclosing scope")
    return alike(function, code, tuple(cells[name] for name in code.co_freevars))


def alike(function: FunctionType, code: CodeType, closure: tuple[CellType, ...] | None) -> FunctionType:
    """A function with this code and closure, and everything else of another one."""
    new = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__ = function.__kwdefaults__
    annotate = getattr(function, "__annotate__", None)  # since Python 3.14: evaluates them, and may fail, when asked
    if annotate is None:
        new.__annotations__ = function.__annotations__
    else:
        new.__annotate__ = annotate  # type: ignore[attr-defined]
    new.__qualname__, new.__module__, new.__doc__ = function.__qualname__, function.__module__, function.__doc__
    new.__dict__.update(function.__dict__)
    return new
