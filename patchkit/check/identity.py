"""The ledger's key of a live class: its name, and the hash of the source that is really running."""

from __future__ import annotations

import ast
from functools import lru_cache

from patchkit.check.ledger import Key
from patchkit.check.source_identity import class_text, source_hash
from patchkit.errors import RewriteError
from patchkit.rewrite import REWRITE_VERSION
from patchkit.upstream_source import definition, parsed, read_method


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
    return Key(f"{method.owner.__module__}.{name}", digest, REWRITE_VERSION)


@lru_cache(maxsize=256)
def hash_of_class(module_source: str, name: str) -> str:
    """The source hash of a class in the text of its module. Computed once for each text and class.

    Args:
        module_source: text of the module.
        name: ``Outer.Inner`` for a nested class. Of several definitions the last one counts, as for Python.

    Raises:
        RewriteError: there is no such class, or the text does not parse.
    """
    try:
        node = definition(parsed(module_source), name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RewriteError(f"the source does not parse: {error}") from error
    if not isinstance(node, ast.ClassDef):
        raise RewriteError(f"class {name} is not in the source")
    return source_hash(class_text(module_source, node))
