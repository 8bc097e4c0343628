"""One parsed method, and the questions that the rules ask about it."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import libcst as cst
from libcst.metadata import (
    CodeRange,
    ExpressionContext,
    ExpressionContextProvider,
    MetadataWrapper,
    PositionProvider,
)

from patchkit.errors import RewriteError
from patchkit.upstream.method_text import MethodText

_HEADER = "class _:"
"""A method does not parse at its indentation without a class around it."""

_WHITESPACE = (cst.BaseParenthesizableWhitespace, cst.TrailingWhitespace, cst.EmptyLine, cst.Newline)
_NESTED_SCOPES = (cst.FunctionDef, cst.ClassDef, cst.Lambda)
_BINDERS = (cst.ImportAlias, cst.NameItem, cst.MatchAs, cst.MatchStar, cst.MatchMapping)
"""Nodes whose names are bound, or declared global, without being marked as a store by libcst."""

_INTROSPECTION = frozenset({"locals", "vars", "eval", "exec", "dir"})
"""Functions that see which local names a method has."""


@dataclass(frozen=True)
class ProjectionCall:
    """A call of a projection of ours: ``self.<name>(...)``.

    Attributes:
        name: attribute name of the projection.
        node: the call.
        argument: what it is called with; None if that is not exactly one positional argument.
        nested: whether the call stands in a function, lambda or class inside the method.
    """

    name: str
    node: cst.Call
    argument: cst.BaseExpression | None
    nested: bool


class ParsedMethod:
    """A method, parsed from the text that :func:`patchkit.upstream.method_text.find_method` cut out.

    Attributes:
        function: the method.
        module: a module that holds nothing but a class with this method.
        names: every identifier in text order: neither attributes nor keywords of calls.
    """

    def __init__(self, text: MethodText, filename: str) -> None:
        first_line = io.StringIO(text.text, newline="").readline()
        # New lines end as the first line of all does.
        self._header = _HEADER + (first_line[len(first_line.rstrip("\r\n")) :] or "\n")
        try:
            module = cst.parse_module(self._header + text.text)
        except cst.ParserSyntaxError as error:
            line = text.line + max(error.raw_line, 2) - 2
            raise RewriteError(f"{filename}:{line}: libcst cannot parse the method: {error.message}") from error
        if module.code != self._header + text.text:  # lines that end in a lone carriage return, for one
            raise RewriteError(f"{filename}:{text.line}: libcst does not reproduce the text of the method")
        wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
        self.module = wrapper.module
        self._positions = wrapper.resolve(PositionProvider)
        self._contexts = wrapper.resolve(ExpressionContextProvider)
        self._first_line = text.line
        self._children: dict[cst.CSTNode, tuple[cst.CSTNode, ...]] = {}
        self._parents: dict[cst.CSTNode, cst.CSTNode] = {}
        self._index(self.module)
        self.function = self._only_function()
        self.names = tuple(
            node for node in self.walk(self.function) if isinstance(node, cst.Name) and self.is_identifier(node)
        )

    def _index(self, node: cst.CSTNode) -> None:
        """Note children and parents once: libcst collects them anew each time it is asked."""
        self._children[node] = tuple(child for child in node.children if not isinstance(child, _WHITESPACE))
        for child in self._children[node]:
            self._parents[child] = node
            self._index(child)

    def _only_function(self) -> cst.FunctionDef:
        outer = cst.ensure_type(self.module.body[0], cst.ClassDef)
        return cst.ensure_type(outer.body.body[0], cst.FunctionDef)

    # ---- places in the text

    def range(self, node: cst.CSTNode) -> CodeRange:
        """Where a node stands in :attr:`module`."""
        found = self._positions[node]
        assert isinstance(found, CodeRange)
        return found

    def line(self, node: cst.CSTNode) -> int:
        """Line of a node's first character in the text of the whole module, 1-based."""
        return self.range(node).start.line + self._first_line - 2

    def quote(self, node: cst.CSTNode) -> str:
        """A node's code in one line, in backticks, for messages."""
        code = " ".join(self.module.code_for_node(node).split())
        return f"`{code}`" if len(code) <= 100 else f"`{code[:97]}...`"

    def text_of(self, module: cst.Module) -> str:
        """The text of the method in an edited copy of :attr:`module`."""
        return module.code[len(self._header) :]

    # ---- the tree

    def parent(self, node: cst.CSTNode) -> cst.CSTNode:
        """The node that directly contains this one."""
        return self._parents[node]

    def ancestors(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """The nodes that contain this one, innermost first, up to the method."""
        while node is not self.function:
            node = self._parents[node]
            yield node

    def walk(self, node: cst.CSTNode, skip: Collection[cst.CSTNode] = ()) -> Iterator[cst.CSTNode]:
        """A node and everything in it, in text order, without the subtrees in ``skip``."""
        pending = [node]
        while pending:
            node = pending.pop()
            if node not in skip:
                yield node
                pending.extend(reversed(self._children[node]))

    def is_nested(self, node: cst.CSTNode) -> bool:
        """Whether a node stands in a function, lambda or class inside the method. Their own names do not."""
        return any(
            isinstance(outer, _NESTED_SCOPES) and getattr(outer, "name", None) is not node
            for outer in self.ancestors(node)
            if outer is not self.function
        )

    # ---- names

    def is_identifier(self, name: cst.Name) -> bool:
        """Whether a name node names a variable, and not an attribute or a keyword of a call."""
        parent = self._parents[name]
        return not (
            (isinstance(parent, cst.Attribute) and parent.attr is name)
            or (isinstance(parent, cst.Arg) and parent.keyword is name)
        )

    def binds(self, name: cst.Name) -> bool:
        """Whether this occurrence of a name gives it another value, deletes it or declares it global or nonlocal."""
        if self.is_stored(name):
            return True
        outer = self._parents[name]
        while isinstance(outer, cst.Attribute):  # import a.b binds a
            outer = self._parents[outer]
        return isinstance(outer, _BINDERS)

    def reads(self, name: cst.Name) -> bool:
        """Whether this occurrence of a name uses its value, or needs it to be bound."""
        stored = self._contexts.get(name) is ExpressionContext.STORE
        return not stored or isinstance(self._parents[name], cst.AugAssign)

    def is_stored(self, node: cst.CSTNode) -> bool:
        """Whether a name, attribute or subscript is assigned to or deleted here."""
        return self._contexts.get(node) in (ExpressionContext.STORE, ExpressionContext.DEL)

    def bound_in(self, node: cst.CSTNode) -> frozenset[str]:
        """Names that are bound anywhere in a node."""
        return frozenset(
            name.value
            for name in self.walk(node)
            if isinstance(name, cst.Name) and self.is_identifier(name) and self.binds(name)
        )

    @cached_property
    def local_names(self) -> frozenset[str]:
        """Parameters and every name that the method binds."""
        return self.bound_in(self.function.params) | self.bound_in(self.function.body)

    def occurrences(self, name: str) -> Iterator[cst.Name]:
        """Every place where a name occurs in the method."""
        return (node for node in self.names if node.value == name)

    @cached_property
    def introspects(self) -> bool:
        """Whether the method calls something that sees its local names, such as ``locals()``."""
        return any(
            isinstance(call := self._parents[name], cst.Call) and call.func is name
            for name in self.names
            if name.value in _INTROSPECTION
        )

    # ---- self and its projections

    @cached_property
    def self_name(self) -> str | None:
        """Name of the first parameter; None if there is none, or if it does not stand for the object throughout."""
        parameters = self.function.params
        positional = [*parameters.posonly_params, *parameters.params]
        kinds = {decorator.decorator for decorator in self.function.decorators}
        if not positional or any(isinstance(kind, cst.Name) and kind.value in _NOT_BOUND for kind in kinds):
            return None
        name = positional[0].name
        bindings = (node for node in self.occurrences(name.value) if node is not name and self.binds(node))
        declared = (cst.NameItem,)
        rebound = any(isinstance(self._parents[node], declared) or not self.is_nested(node) for node in bindings)
        return None if rebound else name.value

    def is_self(self, node: cst.CSTNode) -> bool:
        """Whether a node is the name of the object itself."""
        return isinstance(node, cst.Name) and node.value == self.self_name

    def self_attribute(self, node: cst.CSTNode) -> str | None:
        """``name`` if the node is ``self.name``, else None."""
        return node.attr.value if isinstance(node, cst.Attribute) and self.is_self(node.value) else None

    @cached_property
    def calls(self) -> tuple[ProjectionCall, ...]:
        """Every call of an attribute of self, in the order of evaluation where that is the order of the text.

        An inner call ends before the outer one does, and is evaluated before it.
        """
        found = []
        for node in self.walk(self.function.body):
            if isinstance(node, cst.Call) and (name := self.self_attribute(node.func)):
                found.append(ProjectionCall(name, node, one_positional(node), self.is_nested(node)))
        return tuple(sorted(found, key=lambda call: end_of(self.range(call.node))))

    def calls_of(self, *names: str) -> tuple[ProjectionCall, ...]:
        """The calls of these attributes of self, in the order of :attr:`calls`."""
        return tuple(call for call in self.calls if call.name in names)

    def why_not_rewritable(self, call: ProjectionCall) -> str | None:
        """Why a call of a projection has to be left as it is, or None."""
        if call.nested:
            # self may be another object there, and the code may run later or elsewhere
            return f"{self.quote(call.node)} stands in a nested function, lambda or class"
        if call.argument is None:
            return f"{self.quote(call.node)} does not take exactly one positional argument"
        return None

    def attribute_of_self(self, name: str) -> cst.BaseExpression:
        """``self.name``, for new code."""
        return cst.parse_expression(f"{self.self_name}.{name}")

    def quote_of_self(self, *names: str) -> str:
        """Attributes of self in backticks, for messages: any of them."""
        return " or ".join(f"`{self.self_name}.{name}`" for name in names)


_NOT_BOUND = frozenset({"staticmethod", "classmethod"})


def one_positional(call: cst.Call) -> cst.BaseExpression | None:
    """The argument of a call with exactly one positional argument, else None."""
    if len(call.args) != 1 or call.args[0].keyword or call.args[0].star:
        return None
    value = call.args[0].value
    # f(y for y in x) cannot be given a second argument without parentheses
    return None if isinstance(value, cst.GeneratorExp) and not value.lpar else value


def end_of(place: CodeRange) -> tuple[int, int]:
    """Line and column of a place's end: what is evaluated first ends first, where the text is in order."""
    return place.end.line, place.end.column
