"""The description of a block, derived from the source of its class: no name of an architecture is looked at.

What is derived is a proposal. The rewriter takes it only where the code is exactly of a form that it knows, and the
patch counts only once it is proven equal.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from patchkit.arch.spec import Block
from patchkit.derivation.attention import attention_of
from patchkit.derivation.attributes import Attributes, linear_classes
from patchkit.derivation.flow import calls_in
from patchkit.derivation.mlp import mlp_of
from patchkit.derivation.shared import shared_input_of
from patchkit.errors import RewriteError
from patchkit.upstream.classes import Function, class_named, definition, is_decided, method_named, namesakes
from patchkit.upstream.live import read_method
from patchkit.upstream.text import failures_of, parsed

NO_LINEAR = "it calls no linear layer"
"""The reason for a class that has nothing to describe."""


def derive(cls: type) -> Block | str:
    """Describe a class of a running program by its structure, or say why it is no block.

    Its ``forward`` is the one that runs, also where ``functools.wraps`` has put something around it. Where
    ``__init__`` cannot be read, its attributes may be anything.

    Args:
        cls: a class, wherever it is from.
    """
    method = read_method(cls, "forward")
    if isinstance(method, str):
        return method
    try:
        with failures_of(method.filename, f"{cls.__qualname__} cannot be described"):
            function = definition(parsed(method.source, method.filename), method.function.__qualname__, method.filename)
            return _derived(cls.__qualname__, function, _attributes_of(cls))
    except RewriteError as error:
        return str(error)


def derive_from_text(
    source: str, class_name: str, filename: str = "<source>", *, shared_input: bool = True
) -> Block | str:
    """Describe a class by its text, or say why it is no block. Nothing is imported or run.

    Args:
        source: text of a module.
        class_name: a class in it, which defines ``forward`` or inherits it from one that is in the text, too.
        filename: what to call the module in error messages.
        shared_input: whether a class that is neither an attention nor an MLP may be a :class:`SharedInput`.

    Raises:
        RewriteError: the text does not parse, is nested too deeply, or has no such class; or a condition decides which
            class or method counts.
    """
    with failures_of(filename, f"{class_name} cannot be described"):
        tree = parsed(source, filename)
        lineage = list(_lineage(tree, class_named(tree, class_name, filename)))
        owner = next((node for node in lineage if "forward" in namesakes(node.body)), None)
        if owner is None:
            return "neither it nor a base of it in the same text defines forward"
        function = method_named(owner, class_name, "forward", filename)
        return _derived(class_name, function, _attributes_in(tree, lineage), shared_input=shared_input)


def _derived(class_name: str, function: Function, attributes: Attributes, *, shared_input: bool = True) -> Block | str:
    calls = calls_in(function)
    if not any(attributes.may_be_projection(call.name) for call in calls):
        return NO_LINEAR
    attention = attention_of(class_name, calls, attributes)
    if not isinstance(attention, str):
        return attention
    mlp = mlp_of(class_name, calls, attributes)
    if not isinstance(mlp, str):
        return mlp
    shared = shared_input_of(class_name, calls, attributes) if shared_input else None
    if shared is not None:
        return shared
    return f"no attention: {attention}; no MLP: {mlp}"


# ---- what is known of the attributes


def _attributes_in(tree: ast.Module, lineage: Iterable[ast.ClassDef]) -> Attributes:
    linear = linear_classes(_classes(tree))
    attributes = Attributes()
    for node in lineage:
        attributes.add(node, linear)
    return attributes


def _attributes_of(cls: type) -> Attributes:
    """The attributes of a live class, from the ``__init__`` of each of its bases that can be read."""
    attributes = Attributes()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in _NOT_READ:
            methods = (read_method(base, name) for name in ("__init__", "forward") if name in vars(base))
            method = next((method for method in methods if not isinstance(method, str)), None)
            if method is not None:
                tree = parsed(method.source, method.filename)
                node = class_named(tree, base.__qualname__, method.filename)
                attributes.add(node, linear_classes(_classes(tree)))
    return attributes


_NOT_READ = frozenset({"builtins", "torch"})
"""Packages whose classes say nothing of a block."""


@lru_cache(maxsize=8)
def _classes(tree: ast.Module) -> Mapping[str, ast.ClassDef]:
    """The classes of a module that stand at its top, and that Python keeps, by name."""
    found = namesakes(tree.body).items()
    return {
        name: several[-1].node
        for name, several in found
        if isinstance(several[-1].node, ast.ClassDef) and is_decided(several)
    }


def _lineage(tree: ast.Module, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """A class and its bases in the same text, each once, nearest first."""
    classes, waiting, seen = _classes(tree), [node], set[int]()
    while waiting:
        node = waiting.pop(0)
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting.extend(classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes)
