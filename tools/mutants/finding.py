"""Every mutant of a source file."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import partial

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider

from tools.mutants.mutant import Mutant, digest
from tools.mutants.operators import OPERATORS
from tools.mutants.operators.operator import Place

_LEFT_ALONE = (cst.Import, cst.ImportFrom, cst.Annotation, cst.Decorator, cst.Raise, cst.Assert, cst.FormattedString)
"""What no fault is put into: declarations, and what is said when something is wrong anyway."""


def mutants_of(file: str, text: str) -> list[Mutant]:
    """The mutants of a file, in the order of its text.

    Args:
        file: path from the repository's root.
        text: what it holds.
    """
    wrapper = MetadataWrapper(cst.parse_module(text))
    positions = wrapper.resolve(PositionProvider)
    place = Place(wrapper.module, wrapper.resolve(ParentNodeProvider))
    version = digest(text)
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for node in _nodes(wrapper.module):
        for operator in OPERATORS:
            for other in operator.changes(node, place):
                start, function = positions[node].start, _qualified(node, place)
                found.append(
                    Mutant(
                        file,
                        start.line,
                        start.column,
                        operator.name,
                        function,
                        seen[function, operator.name],
                        version,
                        partial(_code, place, node, other),
                        partial(_replaced, place, node, other),
                    )
                )
                seen[function, operator.name] += 1
    return found


def is_fault(mutant: Mutant, text: str) -> bool:
    """Whether a mutant compiles and is another program than the text that it was made from."""
    try:
        return ast.dump(ast.parse(mutant.make())) != ast.dump(ast.parse(text))
    except (SyntaxError, cst.CSTValidationError):
        return False


def _nodes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, _LEFT_ALONE) or (isinstance(node, cst.If) and _is_for_type_checkers(node)):
        return
    yield node
    for child in node.children:
        yield from _nodes(child)


def _is_for_type_checkers(node: cst.If) -> bool:
    return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"


def _qualified(node: cst.CSTNode, place: Place) -> str:
    around = [outer.name.value for outer in place.above(node) if isinstance(outer, (cst.FunctionDef, cst.ClassDef))]
    return ".".join(reversed(around))


def _code(place: Place, node: cst.CSTNode, other: cst.CSTNode) -> tuple[str, str]:
    return place.code(node), place.code(other)


def _replaced(place: Place, node: cst.CSTNode, other: cst.CSTNode) -> str:
    changed = place.module.deep_replace(node, other)
    assert isinstance(changed, cst.Module)  # a statement is replaced, never the module
    return changed.code
