"""The identity of upstream code: a hash that changes when what a class does may have changed, and only then.

Results are keyed by it, so a class that many releases share is rewritten and proven once.

**What is hashed.** The syntax tree of one class: its name, bases, decorators, every method, every default and
annotation. **What is not.** Comments, docstrings and other bare strings, ``pass`` beside other statements, formatting,
quotes, and how a constant is spelled (``0x10`` and ``16``). The tree is written by this file and not by ``ast.dump``,
whose text differs between Python versions: the same source has the same hash on every Python that can parse it.

**Which class.** The one whose body defines ``forward``: that method is what gets rewritten. For a class that inherits
``forward``, hash the class that it inherits it from (:attr:`patchkit.upstream.live.LiveMethod.owner`).

**What lies outside.** Functions and classes of the module that ``forward`` calls, and its base classes. The rewritten
method calls them as upstream does, so a change in them changes both sides alike; those that projections were
moved past are another part of the key (:mod:`patchkit.trust.outside`). What differs between the two sides,
the projections and the activation, is read from the live module at each call.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator

from patchkit.errors import RewriteError
from patchkit.upstream.text import parsed_alone

_NOT_BEHAVIOUR = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields that follow from the rest (``ctx``), or that Python drops when it compiles."""


def normalised(source: str) -> str:
    """The text that stands for everything in ``source`` that can change behaviour.

    Args:
        source: Python text, such as a class; it may be indented as a whole, as a nested class is.

    Returns:
        One line of ASCII, the same on every Python version. It is for hashing, and is not Python.

    Raises:
        RewriteError: the text does not parse, or is nested too deeply.
    """
    try:
        return "".join(_node(ast.Module(body=parsed_alone(source), type_ignores=[])))
    except RecursionError as error:
        raise RewriteError("the source is nested too deeply") from error


def source_hash(source: str) -> str:
    """SHA-256 of :func:`normalised`, as 64 hexadecimal digits.

    Raises:
        RewriteError: the text does not parse.
    """
    return hashlib.sha256(normalised(source).encode("ascii")).hexdigest()


def _node(node: ast.AST) -> Iterator[str]:
    """``Name(field=value,...)`` with the fields sorted, those that are empty left out: a Python may add such fields."""
    if isinstance(node, ast.Constant):
        yield _constant(node.value)
        return
    yield f"{type(node).__name__}("
    for field in sorted(set(node._fields) - _NOT_BEHAVIOUR):
        value = getattr(node, field, None)
        if isinstance(node, ast.JoinedStr):
            value = list(_joined(node.values))
        elif field in {"body", "orelse", "finalbody"} and isinstance(value, list):
            value = _statements(value)
        if value is None or value == [] or (field == "format_spec" and not list(_joined(value.values))):
            continue
        yield f"{field}="
        yield from _value(value)
        yield ","
    yield ")"


def _value(value: object) -> Iterator[str]:
    if isinstance(value, ast.AST):
        yield from _node(value)
    elif isinstance(value, list):
        yield "["
        for item in value:
            if item is not None:  # the key of ** in a dict display, a keyword-only parameter without default
                yield from _value(item)
            yield ","
        yield "]"
    else:
        yield _constant(value)


def _constant(value: object) -> str:
    """A constant as ASCII. ``repr`` of a string depends on Python's Unicode tables; that of an int has a size limit."""
    if isinstance(value, str):
        return json.dumps(value)
    if type(value) is int:
        return f"{value:x}"
    return f"{type(value).__name__}:{value!a}"


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """A body without docstring, other bare strings, and ``pass``: an empty one does what ``pass`` does."""
    return [statement for statement in body if not (isinstance(statement, ast.Pass) or _is_bare_string(statement))]


def _is_bare_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _joined(parts: list[ast.expr]) -> Iterator[ast.expr]:
    """The parts of an f-string with neighbouring texts as one: Python versions cut them differently."""
    text = ""
    for part in parts:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        if text:
            yield ast.Constant(text)
        text = ""
        yield part
    if text:
        yield ast.Constant(text)
