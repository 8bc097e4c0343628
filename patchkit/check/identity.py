"""The ledger's key of a live class: its name, the hash of the source that really runs, and how it is described."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from functools import lru_cache

from patchkit.arch.discovery import registered
from patchkit.arch.registry import foreign_description
from patchkit.check.ledger import Key
from patchkit.check.source_identity import class_text, source_hash
from patchkit.errors import RewriteError
from patchkit.rewrite import REWRITE_VERSION
from patchkit.upstream_source import read_method


def key_of(cls: type) -> Key | str:
    """The key of a class, or why it has none: its source cannot be read, or is not what runs.

    Args:
        cls: an unpatched class. The key is that of the class in its MRO whose body defines ``forward``.
    """
    method = read_method(cls, "forward")
    if isinstance(method, str):
        return method
    name = method.owner.__qualname__
    try:
        digest = hash_of_class(method.source, name)
    except RewriteError as error:
        return str(error)
    entry = registered(cls)
    description = foreign_description(*entry) if entry else ""
    return Key(f"{method.owner.__module__}.{name}", digest, REWRITE_VERSION, description)


@lru_cache(maxsize=256)
def hash_of_class(module_source: str, name: str) -> str:
    """The source hash of a class in the text of its module. Computed once for each text and class.

    Args:
        module_source: text of the module.
        name: ``Outer.Inner`` for a nested class. Of several definitions the last one counts, as for Python.

    Raises:
        RewriteError: there is no such class, or the text does not parse.
    """
    node: ast.AST = _tree(module_source)
    for part in name.split("."):
        classes = [inner for inner in _classes(node) if inner.name == part]
        if not classes:
            raise RewriteError(f"class {name} is not in the source")
        node = classes[-1]
    assert isinstance(node, ast.ClassDef)
    return source_hash(class_text(module_source, node))


@lru_cache(maxsize=2)
def _tree(source: str) -> ast.Module:
    """Attention and MLP stand in one file, so it is parsed once for both."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream's invalid escapes are not the user's business
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RewriteError(f"the source does not parse: {error}") from error


def _classes(node: ast.AST) -> Iterator[ast.ClassDef]:
    """Classes in a body, also under conditions, but not inside of other classes or functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield child
        elif isinstance(child, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):
            yield from _classes(child)
