"""What an operator is, and what it may ask about the place it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import libcst as cst


@dataclass(frozen=True)
class Place:
    """Where a node stands.

    Attributes:
        module: the parsed file.
        parents: the parent of each node.
    """

    module: cst.Module
    parents: Mapping[cst.CSTNode, cst.CSTNode]
    _used: dict[cst.CSTNode, frozenset[tuple[bool, str]]] = field(default_factory=dict)
    _functions: dict[str, cst.FunctionDef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.parents:
            if isinstance(node, cst.FunctionDef):
                self._functions.setdefault(node.name.value, node)

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """The node around a node."""
        return self.parents.get(node)

    def above(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """The nodes around a node, from the inside out."""
        found = self.parents.get(node)
        while found is not None:
            yield found
            found = self.parents.get(found)

    def function(self, node: cst.CSTNode) -> cst.FunctionDef | None:
        """The innermost function around a node."""
        return next((outer for outer in self.above(node) if isinstance(outer, cst.FunctionDef)), None)

    def defined(self, name: str) -> cst.FunctionDef | None:
        """The function or method of this file with a name."""
        return self._functions.get(name)

    def uses(self, function: cst.FunctionDef, name: str, *, as_attribute: bool) -> bool:
        """Whether a function has a variable, or reads an attribute, of this name."""
        if function not in self._used:
            names = (node for node in nodes_of(function) if isinstance(node, cst.Name))
            self._used[function] = frozenset((self.is_attribute(node), node.value) for node in names)
        return (as_attribute, name) in self._used[function]

    def is_attribute(self, name: cst.Name) -> bool:
        """Whether this is the name behind a dot."""
        parent = self.parents.get(name)
        return isinstance(parent, cst.Attribute) and parent.attr is name

    def code(self, node: cst.CSTNode) -> str:
        """The code of a node in one line."""
        return " ".join(self.module.code_for_node(node).split())


@dataclass(frozen=True)
class Operator:
    """One kind of fault.

    Attributes:
        name: what it does.
        changes: yields for a node, at its place, what could stand there instead; nothing where it does not apply.
    """

    name: str
    changes: Callable[[cst.CSTNode, Place], Iterable[cst.CSTNode]]


def nodes_of(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A node and all nodes in it, in the order of the text."""
    yield node
    for child in node.children:
        yield from nodes_of(child)


def called_name(node: cst.CSTNode | None) -> str:
    """The last name of what a call calls; empty for anything else."""
    if not isinstance(node, cst.Call):
        return ""
    if isinstance(node.func, cst.Attribute):
        return node.func.attr.value
    return node.func.value if isinstance(node.func, cst.Name) else ""


def parameters_of(function: cst.FunctionDef) -> list[cst.Param]:
    """The parameters of a function that have a name each, in order."""
    return [*function.params.posonly_params, *function.params.params, *function.params.kwonly_params]


def compares_with_none(node: cst.CSTNode) -> bool:
    """Whether this is ``x is None`` or ``x is not None``."""
    if not isinstance(node, cst.Comparison) or len(node.comparisons) != 1:
        return False
    comparator = node.comparisons[0].comparator
    return isinstance(comparator, cst.Name) and comparator.value == "None"


def in_place_of(new: cst.BaseExpression, old: cst.BaseExpression) -> cst.BaseExpression:
    """An expression with the parentheses of the one whose place it takes, which may hold several lines together."""
    return new.with_changes(lpar=[*old.lpar, *new.lpar], rpar=[*new.rpar, *old.rpar])


NOTHING = cst.SimpleStatementLine([cst.Pass()])
"""What stands where a statement was removed."""
