"""Which code of PEFT each reader stands for, found in the text of a release; nothing of it is imported.

A reader's formula is what certain functions of PEFT compute. Their text is what the reader was written from and proven
with, so a release in which one of them reads otherwise is another one to the reader, whatever its number says. What is
compared is the hash of :mod:`patchkit.upstream.identity`: comments, docstrings and formatting do not count, and neither
does the file or the base class that a function has been moved to.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from patchkit.upstream.classes import Definition, first_line, namesakes
from patchkit.upstream.identity import source_hash
from patchkit.upstream.release import module_path
from patchkit.upstream.text import parsed, split_lines

READER_VERSION = 1
"""Raised when a reader computes anything else of the same text: what was proven before was another reader."""

_LAYER = "peft.tuners.lora.layer"
_DORA = "peft.tuners.lora.dora"
_VARIANTS = "peft.tuners.lora.variants"
_QUANTISED = "peft.tuners.lora.bnb"
_STATE = "disable_adapters merged active_adapters active_adapter"


def _names(owner: str, methods: str) -> str:
    return " ".join(f"{owner}.{method}" for method in methods.split())


def _layer(owner: str) -> str:
    return _names(owner, f"forward _check_forward_args _cast_input_dtype {_STATE}")


_LINEAR_DORA = "cache_decorator dequantize_module_weight transpose " + _names(
    "DoraLinearLayer", "forward get_weight_norm get_lora_weight _cache_clear"
)

READERS: Mapping[str, Mapping[str, str]] = {
    "Linear": {_LAYER: f"{_layer('Linear')} VARIANT_KWARG_KEYS"},
    "Linear, DoRA": {
        _LAYER: f"{_layer('Linear')} {_names('Linear', 'get_base_layer')} VARIANT_KWARG_KEYS",
        _VARIANTS: _names("DoraLinearVariant", "forward"),
        _DORA: _LINEAR_DORA,
        "peft.utils.integrations": "dequantize_bnb_weight",
    },
    "Embedding": {
        _LAYER: _names("Embedding", f"forward _check_forward_args _embed _get_embed_scale get_base_layer {_STATE}")
        + " VARIANT_KWARG_KEYS"
    },
    "Embedding, DoRA": {
        _LAYER: _names("Embedding", f"forward _check_forward_args _embed _get_embed_scale get_base_layer {_STATE}")
        + " VARIANT_KWARG_KEYS",
        _VARIANTS: _names("DoraEmbeddingVariant", "forward"),
        _DORA: "cache_decorator transpose "
        + _names("DoraEmbeddingLayer", "forward get_weight_norm get_lora_weight _cache_clear"),
    },
    "ParamWrapper": {
        _LAYER: _names(
            "ParamWrapper",
            "forward _check_forward_args _activate_lora _remove_parametrizations get_param get_base_layer "
            f"get_delta_weight get_delta_factors {_STATE}",
        )
        + " _LoraParameterProxy.forward _LoraParameterProxy._low_prec_add _LoraFactorsProxy.forward"
    },
    "ModulesToSaveWrapper": {
        "peft.utils.other": _names(
            "ModulesToSaveWrapper",
            "forward _check_forward_args _forward_wrapped _forward_wrapped_passthrough disable_adapters "
            "active_adapters",
        )
    },
    "Linear4bit": {_QUANTISED: f"{_layer('Linear4bit')} {_names('Linear4bit', 'get_base_layer')}"},
    "Linear8bitLt": {_QUANTISED: f"{_layer('Linear8bitLt')} {_names('Linear8bitLt', 'get_base_layer')}"},
}
"""For each reader the modules of PEFT, and in each the functions, methods and constants that it relies on.

A method may stand in a base of the class, a function in the module that it is imported from. One that a release lacks
takes no part, as in :class:`patchkit.adapters.formula.Formula`; a test holds that all of a formula's are here.
"""


@dataclass(frozen=True)
class Piece:
    """One function, method or constant as a release has it.

    Attributes:
        name: as :data:`READERS` says it: ``Linear.forward``.
        path: of the file that it stands in.
        line: of its first line there.
        text: its lines; those of all definitions, if a property has several.
        source: hash of what it does.
    """

    name: str
    path: str
    line: int
    text: str
    source: str


Read = Callable[[str], "str | None"]
"""The text of a file of a release, such as :meth:`patchkit.upstream.release.Release.read`; None if there is none."""


def pieces_of(read: Read, reader: str) -> dict[str, Piece]:
    """What a reader relies on, by name, as a release has it; without what the release lacks.

    Raises:
        ReleaseError: a file cannot be read.
        RewriteError: a file is no Python that this Python can parse.
    """
    found: dict[str, Piece] = {}
    for module, names in READERS[reader].items():
        for name in names.split():
            piece = _piece(read, module, name)
            if piece is not None:
                found[name] = piece
    return found


def digest_of(sources: Mapping[str, str]) -> str:
    """One hash of all that a reader relies on, from the hashes of its pieces by name."""
    return hashlib.sha256(json.dumps([READER_VERSION, sorted(sources.items())]).encode()).hexdigest()


def _piece(read: Read, module: str, name: str) -> Piece | None:
    first, _, rest = name.partition(".")
    for place, there, body, text in _places(read, module, first):
        nodes = _defined(body, rest or there)
        if nodes:
            lines = split_lines(text)
            texts = ["".join(lines[_line(node) - 1 : node.end_lineno]) for node in nodes]
            source = "+".join(source_hash(one) for one in texts)
            return Piece(name, module_path(place), _line(nodes[0]), "".join(texts), source)
    return None


def _places(read: Read, module: str, name: str) -> Iterator[tuple[str, str, list[ast.stmt], str]]:
    """Where a name may be defined, a class and its bases or a module: module, the name there, the body, and the text.

    Depth first, each once, and only within PEFT; that is Python's order where no base is shared, and none is here.
    """
    waiting, seen = [(module, name)], set()
    while waiting:
        module, name = waiting.pop()
        text = None if (module, name) in seen else read(module_path(module))
        seen.add((module, name))
        if text is None:
            continue
        tree = parsed(text, module_path(module))
        several = namesakes(tree.body).get(name, [])
        classes = [one.node for one in several if isinstance(one.node, ast.ClassDef)]
        if not classes:
            yield module, name, tree.body, text
            waiting += _imported(tree, module, name)
        for node in classes:
            yield module, name, node.body, text
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            here = {base for base in bases if base in namesakes(tree.body)}
            waiting += [
                found
                for base in reversed(bases)
                for found in ([(module, base)] if base in here else _imported(tree, module, base))
            ]


def _imported(tree: ast.Module, module: str, name: str) -> list[tuple[str, str]]:
    """The module of PEFT that a name is imported from, and its name there."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    package = module.split(".")[: -node.level] if node.level else []
                    imported = ".".join([*package, *filter(None, [node.module])])
                    return [(imported, alias.name)] if imported.startswith("peft.") else []
    return []


def _defined(body: list[ast.stmt], name: str) -> list[Definition | ast.Assign]:
    """What defines a name in a body: functions (the parts of a property are several), or the last assignment."""
    functions = [one.node for one in namesakes(body).get(name, []) if not isinstance(one.node, ast.ClassDef)]
    if functions:
        return [*functions]
    assigned = [node for node in body if isinstance(node, ast.Assign) and _assigns(node, name)]
    return [*assigned[-1:]]


def _assigns(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def _line(node: Definition | ast.Assign) -> int:
    return node.lineno if isinstance(node, ast.Assign) else first_line(node)


def sources_of(pieces: Mapping[str, Piece]) -> dict[str, str]:
    """The hashes of pieces by name."""
    return {name: piece.source for name, piece in pieces.items()}
