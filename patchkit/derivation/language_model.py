"""The description of a language model, derived from the source of its class: which attribute is its head.

What is handed to ``self.loss_function`` as logits was assigned what a call of an attribute gives: that is the head.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from patchkit.arch.spec import LanguageModel
from patchkit.derivation.known import NOT_ASKED
from patchkit.errors import RewriteError
from patchkit.module_tree import unpatched
from patchkit.upstream.classes import Function, class_table, definition
from patchkit.upstream.live import read_method
from patchkit.upstream.text import failures_of, parsed

_LOSS_FUNCTION = "loss_function"


NO_LOSS_FUNCTION = "its forward hands no logits to a loss function of the model"
"""The reason for a class that has nothing to describe."""


def language_model_of(cls: type) -> LanguageModel | str:
    """Describe a class of a running program, or say why it is no language model as they are known.

    Args:
        cls: a class, patched or not.
    """
    cls = unpatched(cls)
    if cls.__module__.partition(".")[0] in NOT_ASKED or not hasattr(cls, _LOSS_FUNCTION):
        return NO_LOSS_FUNCTION
    method = read_method(cls, "forward")
    if isinstance(method, str):
        return method
    try:
        with failures_of(method.filename, f"{cls.__qualname__} cannot be described"):
            tree = parsed(method.source, method.filename)
            head = _head_of(definition(tree, method.function.__qualname__, method.filename))
    except RewriteError as error:
        return str(error)
    return NO_LOSS_FUNCTION if head is None else LanguageModel(cls.__qualname__, head)


def language_models_in(source: str, filename: str = "<source>") -> Iterator[LanguageModel]:
    """Describe the language models that a text defines, in its order. Nothing is imported or run.

    Args:
        source: text of a module.
        filename: what to call it in error messages.

    Raises:
        RewriteError: the text does not parse, or is nested too deeply.
    """
    with failures_of(filename, "its language models cannot be described"):
        tree = parsed(source, filename)
        for name in class_table(source, filename).classes:
            node = next((one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name), None)
            for method in node.body if node is not None else ():
                if isinstance(method, ast.FunctionDef) and method.name == "forward":
                    head = _head_of(method)
                    if head is not None:
                        yield LanguageModel(name, head)


def _head_of(function: Function) -> str | None:
    """The attribute whose call gives what is handed to the loss function as logits."""
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and _attribute_of_self(call.func) == _LOSS_FUNCTION:
            logits = next((one.value for one in call.keywords if one.arg == "logits"), None) or next(
                iter(call.args), None
            )
            if isinstance(logits, ast.Name):
                return _called_for(function, logits.id)
    return None


def _called_for(function: Function, name: str) -> str | None:
    """The attribute that is called where a name is first assigned to."""
    for node in ast.walk(function):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        for inner in ast.walk(node.value) if node.value is not None else ():  # type: ignore[attr-defined]
            if isinstance(inner, ast.Call) and (attribute := _attribute_of_self(inner.func)) is not None:
                return attribute
    return None


def _attribute_of_self(node: ast.expr) -> str | None:
    plain = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if plain else None  # type: ignore[attr-defined]
