"""The whole model in a file: which class it is, what its constructor and its ``forward`` take, and its model types."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass

from patchkit.upstream.classes import class_named, class_table, namesakes
from patchkit.upstream.text import parsed

_ENDS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model")
"""What the class of a whole model ends in, the best first."""


_NAME = re.compile(r"[\w.-]+")
"""What a model type is, in an architecture too."""


@dataclass(frozen=True)
class WholeModel:
    """A class of a whole model.

    Attributes:
        name: of the class.
        of_transformers: whether it inherits from ``PreTrainedModel``, so that a tiny one can be made of it.
        arguments: names that its constructor wants.
        inputs: names that its ``forward`` wants.
    """

    name: str
    of_transformers: bool
    arguments: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


def whole_model_in(text: str, path: str) -> WholeModel | None:
    """The class of a whole model in a text: one of transformers, or else the last one that nobody else uses.

    Raises:
        RewriteError: the text does not parse.
    """
    classes = class_table(text, path).classes
    tree = parsed(text, path)
    models: list[str] = []
    for entry in classes.values():  # a base stands above its heirs
        if any(base.rpartition(".")[2] == "PreTrainedModel" or base in models for base in entry.bases):
            models.append(entry.name)
    whole = [name for name in models if classes[name].has_forward and not name.endswith("PreTrainedModel")]
    if whole:
        rank = {name: next((i for i, end in enumerate(_ENDS) if name.endswith(end)), len(_ENDS)) for name in whole}
        return WholeModel(min(whole, key=rank.__getitem__), of_transformers=True)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    alone = [entry.name for entry in classes.values() if entry.has_forward and entry.name not in used]
    if not alone:
        return None
    node = class_named(tree, alone[-1], path)
    return WholeModel(alone[-1], False, _wanted(node, "__init__"), _wanted(node, "forward"))


def _wanted(node: ast.ClassDef, method: str) -> tuple[str, ...]:
    """The arguments of a method that have no default, without the object."""
    several = namesakes(node.body).get(method)
    function = several[-1].node if several else None
    if function is None or isinstance(function, ast.ClassDef):
        return ()
    given = function.args
    named = [*given.posonlyargs, *given.args]
    wanted = named[: len(named) - len(given.defaults)][1:]
    wanted += [one for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None]
    return tuple(one.arg for one in wanted)


def model_types_in(texts: Iterable[str]) -> tuple[str, ...]:
    """The model types that classes in these texts have: ``model_type = "acme"`` in the body of one."""
    found: dict[str, None] = {}
    for text in texts:
        for node in ast.walk(parsed(text)):
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, (ast.Assign, ast.AnnAssign)) and isinstance(inner.value, ast.Constant):
                    targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
                    if any(isinstance(one, ast.Name) and one.id == "model_type" for one in targets):
                        found[str(inner.value.value)] = None
    return tuple(filter(_NAME.fullmatch, found))
