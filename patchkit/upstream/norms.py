"""Which modules are norms that can be computed again: told from the source of their class, and not from its name.

Norms of transformers cast their input to float32, and autograd keeps the copy. A module counts whose ``forward`` has
one argument, contains such a cast, and does nothing but arithmetic: on its argument, and on numbers and tensors of its
own. It draws nothing, writes nothing and calls no module, so that it gives the same bits again.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from patchkit.errors import RewriteError
from patchkit.upstream.live import definition_of, read_method

_FUNCTIONS = frozenset({"abs", "add", "div", "mean", "mul", "pow", "rsqrt", "sqrt", "square", "sub", "sum"})
_TENSOR_METHODS = _FUNCTIONS | {"bfloat16", "double", "float", "half", "to", "type", "type_as"}
_DTYPES = frozenset({"bfloat16", "double", "float", "float16", "float32", "float64", "half"})
_FLOAT32 = frozenset({"float32", "float"})
_COMPARISONS = (ast.Is, ast.IsNot, ast.In, ast.NotIn, ast.Eq, ast.NotEq)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)


class Norm(NamedTuple):
    """What a norm computes with.

    Attributes:
        function: its ``forward``.
        attributes: names of the numbers and tensors of its own that it reads.
        methods: its other methods that it calls, by name.
    """

    function: Callable[..., Any]
    attributes: tuple[str, ...]
    methods: tuple[tuple[str, Callable[..., Any]], ...]


def norm_of(cls: type) -> Norm | str:
    """Describe a class, or say why it is no norm that can be computed again.

    Args:
        cls: a class of modules that is not patched.
    """
    looked_at = _Looking(cls)
    try:
        looked_at.method("forward")
    except _UnfitError as error:
        return str(error)
    except RewriteError as error:
        return str(error)
    if not looked_at.casts:
        return "it casts nothing to float32"
    functions = dict(looked_at.functions)
    return Norm(functions.pop("forward"), tuple(sorted(looked_at.attributes)), tuple(functions.items()))


class _UnfitError(Exception):
    """What keeps a class from being computed again."""


class _Looking:
    """One look at the methods of a class, from ``forward`` on."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self.functions: dict[str, Callable[..., Any]] = {}
        self.attributes: set[str] = set()
        self.casts = False

    def method(self, name: str) -> None:
        """Look at a method, and at those that it calls.

        Raises:
            _UnfitError: it is more than arithmetic.
        """
        if name in self.functions:
            return
        method = read_method(self._cls, name)
        if isinstance(method, str):
            raise _UnfitError(method)
        function = method.function
        if method.attribute is not function or function.__closure__:
            raise _UnfitError(f"its {name} is wrapped")
        if inspect.unwrap(function).__globals__.get("torch") is not sys.modules.get("torch"):
            raise _UnfitError(f"torch is something else where its {name} stands")
        self.functions[name] = function
        node = definition_of(function)
        if not isinstance(node, ast.FunctionDef):
            raise _UnfitError(f"its {name} cannot be told apart in its file")
        _Body(self, node).look()


class _Body:
    """The lines of one method."""

    def __init__(self, looking: _Looking, node: ast.FunctionDef) -> None:
        self._looking, self._node = looking, node
        arguments = node.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
        if len(names) != 2 or arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.defaults:
            raise _UnfitError(f"its {node.name} takes something else than one tensor")
        self._self, argument = names
        self._known = {argument}

    def look(self) -> None:
        """Look at every line.

        Raises:
            _UnfitError: one is not arithmetic.
        """
        body = self._node.body
        self._block(body[1:] if ast.get_docstring(self._node) is not None else body)

    def _block(self, lines: Sequence[ast.stmt]) -> None:
        for line in lines:
            if isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
                self._value(line.value)
                name = line.targets[0].id
                if name in (self._self, "torch"):
                    raise _UnfitError(f"it assigns {name}")
                self._known.add(name)
            elif isinstance(line, ast.If):
                self._condition(line.test)
                self._block(line.body)
                self._block(line.orelse)
            elif isinstance(line, ast.Return) and line.value is not None:
                self._value(line.value)
            else:
                raise _UnfitError(f"line {line.lineno} is not arithmetic")

    def _value(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (int, float))):
            return
        if isinstance(node, ast.Name) and node.id in self._known:
            return
        if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
            self._value(node.left)
            self._value(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            self._value(node.operand)
        elif isinstance(node, (ast.Tuple, ast.List)):
            for one in node.elts:
                self._value(one)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.Call):
            self._call(node)
        else:
            raise _UnfitError(f"line {node.lineno} is not arithmetic")

    def _attribute(self, node: ast.Attribute) -> None:
        """A dtype, or something of the module."""
        if _is_of_torch(node):
            if node.attr not in _DTYPES:
                raise _UnfitError(f"it reads torch.{node.attr}")
        elif isinstance(node.value, ast.Name) and node.value.id == self._self:
            self._looking.attributes.add(node.attr)
        elif node.attr == "dtype":
            self._value(node.value)
        else:
            raise _UnfitError(f"it reads .{node.attr}")

    def _call(self, node: ast.Call) -> None:
        called = node.func
        if not isinstance(called, ast.Attribute):
            raise _UnfitError(f"line {node.lineno} calls what is no method")
        for one in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._value(one)
        if any(keyword.arg is None for keyword in node.keywords):
            raise _UnfitError(f"line {node.lineno} passes on what it was given")
        if _is_of_torch(called):
            fits = called.attr in _FUNCTIONS
        elif isinstance(called.value, ast.Name) and called.value.id == self._self:
            self._looking.method(called.attr)
            fits = True
        else:
            self._value(called.value)
            fits = called.attr in _TENSOR_METHODS
            self._looking.casts = self._looking.casts or _is_cast(node, called.attr)
        if not fits:
            raise _UnfitError(f"it calls {called.attr}")

    def _condition(self, node: ast.expr) -> None:
        """What does not depend on the values of a tensor: a number or None of the module, or a dtype."""
        if isinstance(node, ast.Compare):
            is_known = all(isinstance(one, _COMPARISONS) for one in node.ops)
            dtypes = all(_is_dtype(one) or _is_none(one) for one in node.comparators)
            if is_known and dtypes and isinstance(node.left, ast.Attribute):
                for one in (node.left, *node.comparators):
                    self._value(one)
                return
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self._self:
            self._value(node)
            return
        raise _UnfitError(f"line {node.lineno} decides by more than a number of its own")


def _is_of_torch(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "torch"


def _is_dtype(node: ast.expr) -> bool:
    if isinstance(node, (ast.Tuple, ast.List)):
        return all(map(_is_dtype, node.elts))
    return isinstance(node, ast.Attribute) and (node.attr == "dtype" or _is_of_torch(node))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_cast(node: ast.Call, method: str) -> bool:
    if method == "float":
        return True
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    dtypes = [one.attr for one in given if isinstance(one, ast.Attribute) and _is_of_torch(one)]
    return method in ("to", "type") and not _FLOAT32.isdisjoint(dtypes)
