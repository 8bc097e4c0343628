"""Finding one method in the text of a module.

Python's own parser says where the method stands (it is fast, and release files have thousands of lines); libcst then
parses the lines of the method alone. Every other line of the file is carried as text, so it cannot change.
"""

from __future__ import annotations

import ast
import difflib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from patchkit.errors import PatchkitError, RewriteError

MOST_NESTED = 100
"""Levels of the syntax tree of a method beyond which it is not rewritten.

The methods of transformers have up to 30. libcst and the rules go down by recursion: far below this they stay within
Python's limit, and far above it libcst's parser, which is native code, would end the process.
"""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = TypeVar("_Definition", ast.ClassDef, _Function)


@dataclass(frozen=True)
class MethodText:
    """The text of a module cut in three: the lines before a method, its own lines, and the lines after it.

    Attributes:
        before: everything above the method's first line (its first decorator, if it has one).
        text: the lines of the method, with their indentation and line ends.
        after: everything below it.
        line: line of the method's first line in the module, 1-based.
    """

    before: str
    text: str
    after: str
    line: int


def find_method(source: str, class_name: str, method: str, filename: str) -> MethodText:
    """Cut ``source`` around one method of one class.

    Args:
        source: text of a module.
        class_name: a class at the top level, also under ``if``, ``try`` or ``with``; ``Outer.Inner`` for a nested one.
        method: name of a method written in the body of that class.
        filename: what to call the module in error messages.

    Raises:
        RewriteError: the text does not parse, or has no such class or method, or has several and a condition decides
            which of them Python keeps.
    """
    with failures_of(filename, f"{class_name}.{method} cannot be found"):
        return _cut(source, class_name, method, filename)


def _cut(source: str, class_name: str, method: str, filename: str) -> MethodText:
    body: Sequence[ast.stmt] = _parse(source, filename).body
    line = 1
    for part in class_name.split("."):
        classes = [node for node in _definitions(body) if isinstance(node, ast.ClassDef)]
        found = _the_one(classes, part, body, f"{filename}:{line}: class")
        body, line = found.body, found.lineno
    functions = [node for node in _definitions(body) if isinstance(node, _Function)]
    function = _the_one(functions, method, body, f"{filename}:{line}: class {class_name}: method")
    if _depth(function) > MOST_NESTED:
        raise RewriteError(
            f"{filename}:{function.lineno}: class {class_name}: {method} is nested too deeply to rewrite"
        )
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
    lines = split_lines(source)
    end = function.end_lineno or function.lineno
    return MethodText("".join(lines[: first - 1]), "".join(lines[first - 1 : end]), "".join(lines[end:]), first)


def split_lines(source: str) -> list[str]:
    """The lines of a text with their ends, as Python's tokenizer counts them."""
    # newline="" splits where the tokenizer does; str.splitlines would also split at form feeds.
    return list(io.StringIO(source, newline=""))


@contextmanager
def failures_of(filename: str, what: str, line: int = 1) -> Iterator[None]:
    """Turn every failure of work on text that somebody else wrote into a RewriteError; errors of patchkit pass.

    Such text can exceed each limit there is, in any function that reads it, and must not end more than its own class.

    Args:
        filename: where the text is from.
        what: what failed: ``the source does not parse``.
        line: where, unless the failure says it.

    Raises:
        RewriteError: something failed.
    """
    try:
        yield
    except PatchkitError:
        raise
    except SyntaxError as error:
        raise RewriteError(f"{filename}:{error.lineno or line}: {what}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise RewriteError(f"{filename}:{line}: {what}: it is nested too deeply, or too large") from error
    except Exception as error:
        raise RewriteError(f"{filename}:{line}: {what}: {type(error).__name__}: {error}") from error


def _parse(source: str, filename: str) -> ast.Module:
    # Upstream's invalid escapes are not the user's business, and under -W error they would be syntax errors.
    with failures_of(filename, "the source does not parse"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source, filename)


def _depth(tree: ast.AST) -> int:
    """Levels of a tree, counted without recursion."""
    depth = 0
    level = [tree]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _definitions(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Classes and functions of a body, also those under a condition, but not those inside of one another."""
    for node in body:
        if isinstance(node, (ast.ClassDef, _Function)):
            yield node
        elif isinstance(node, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from _definitions(getattr(node, part, ()))


def _the_one(definitions: list[_Definition], name: str, body: Sequence[ast.stmt], what: str) -> _Definition:
    """The definition of this name that Python keeps, which is the last one unless conditions are involved."""
    found = [definition for definition in definitions if definition.name == name]
    if not found:
        near = difflib.get_close_matches(name, [definition.name for definition in definitions], n=3)
        raise RewriteError(f"{what} {name} not found" + (f"; near it: {', '.join(near)}" if near else ""))
    if len(found) > 1 and any(definition not in body for definition in found):
        lines = ", ".join(str(definition.lineno) for definition in found)
        raise RewriteError(f"{what} {name} is defined more than once, under conditions (lines {lines})")
    return found[-1]
