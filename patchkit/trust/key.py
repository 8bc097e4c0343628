"""The ledger's key of a live class: its name, hashes of the source that really runs, and how it is described."""

from __future__ import annotations

import ast
from functools import lru_cache

from torch import nn

from patchkit.arch.registry import foreign_description
from patchkit.arch.spec import Block, LanguageModel, description
from patchkit.binding.classes import patched_class
from patchkit.binding.patch import Refusal
from patchkit.derivation.known import described
from patchkit.errors import RewriteError
from patchkit.module_tree import PATCH
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust.ledger import Key
from patchkit.trust.outside import outside
from patchkit.upstream.classes import class_table, definition
from patchkit.upstream.live import read_method
from patchkit.upstream.text import parsed


def key_of(cls: type, module: nn.Module | None = None, block: Block | None = None) -> Key | str:
    """The key of a class, or why it has none: its source cannot be read, or is not what runs.

    Args:
        cls: an unpatched class. The key is that of the class in its MRO whose body defines ``forward``.
        module: an instance. Its own modules count where projections are moved past a call of one.
        block: how it is described, if that is as a language model: then the proof is one of its loss.
    """
    method = read_method(cls, "forward")
    if isinstance(method, str):
        return method
    owner = method.owner
    try:
        digest = hash_of_class(method.source, owner.__qualname__)
        names = _names_in(method.source, method.function.__qualname__)
        is_loss = isinstance(block, LanguageModel)
        elsewhere = outside(cls, owner, () if is_loss else _passed_over(cls), names, method.function, module)
    except RewriteError as error:
        return str(error)
    if isinstance(block, LanguageModel):
        told = description(block)
    else:
        entry = described(cls)
        told = foreign_description(*entry) if entry else ""
    return Key(f"{owner.__module__}.{owner.__qualname__}", digest, REWRITE_VERSION, elsewhere, told)


def _passed_over(cls: type) -> list[str]:
    """What the projections of a class are moved past."""
    entry = described(cls)
    if entry is None:
        return []
    _, block = entry
    patched = patched_class(cls, block, frozenset(block.parts))
    if isinstance(patched, Refusal):
        return []
    return [name for site in vars(patched)[PATCH].sites for name in site.passed_over]


@lru_cache(maxsize=256)
def _names_in(module_source: str, qualname: str) -> frozenset[str]:
    """Every attribute that a method names, of the object or of anything else.

    Raises:
        RewriteError: there is no such method, or nobody can say which of several counts.
    """
    nodes = ast.walk(definition(parsed(module_source), qualname))
    return frozenset(inner.attr for inner in nodes if isinstance(inner, ast.Attribute))


@lru_cache(maxsize=256)
def hash_of_class(module_source: str, name: str) -> str:
    """The source hash of a class in the text of its module. Computed once for each text and class.

    Args:
        module_source: text of the module.
        name: ``Outer.Inner`` for a nested class.

    Raises:
        RewriteError: there is no such class, nobody can say which of several counts, or the text does not parse.
    """
    entry = class_table(module_source, "").classes.get(name)
    if entry is None:
        raise RewriteError(f"class {name} is not in the source")
    return entry.source
