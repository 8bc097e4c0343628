"""Whether a module does nothing with its adapted parameters but multiply with them: read from its source, once.

What stands in the place of a parameter (:mod:`patchkit.runtime.adapted_weight`) answers functions of torch. Code that
hands a parameter to something else (an autograd function, a kernel) would not get a tensor. So each place where a
``forward`` names one has to be of a form that is known: ``F.linear(x, self.w[i])``, ``x @ self.w``, ``self.w.dtype``.

The experts of transformers 5 have a decorator, ``use_experts_implementation``, by which the configuration chooses the
class's own ``forward`` or a function of transformers that stands for all classes. Those functions are known by name.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from patchkit.adapters.formula import Formula, name_of, nothing_changed
from patchkit.adapters.protocol import Reason, interference
from patchkit.upstream.known_wrappers import is_known_wrapper
from patchkit.upstream.live import definition_of

_EXPERTS = "transformers.integrations.moe"
_IMPLEMENTATIONS = ("batched_mm_experts_forward", "grouped_mm_experts_forward")
_HELPERS = "_batched_linear _grouped_linear _grouped_mm _can_use_grouped_mm"

_FUNCTIONS = Formula({F: "linear", torch: "matmul bmm"})
_PRODUCTS: tuple[object, ...] = (F.linear, torch.matmul, torch.bmm)
_CASTS = frozenset({"float", "to", "type", "t", "transpose"})
_TURNS = frozenset({"T", "mT"})
_LOOKS = frozenset({"shape", "dtype", "device"})


class _Uses(NamedTuple):
    """What was read of a class.

    Attributes:
        reason: why its uses of the parameters are not known; None if they are.
        reached: the methods that were read, by name, as they were then.
        unchanged: whether the class has no more and no fewer attributes than then.
    """

    reason: Reason | None
    reached: tuple[tuple[str, object], ...]
    unchanged: Callable[[], bool]


_known: dict[tuple[object, ...], _Uses] = {}


def unfit_uses(module: nn.Module, names: tuple[str, ...]) -> Reason | None:
    """Why nothing can stand in the place of these parameters while a module runs; None if it can.

    Args:
        module: which has the parameters.
        names: of the parameters.
    """
    cls = type(module)
    reason = interference(module, names) or _FUNCTIONS.replaced()
    if reason is not None:
        return reason
    running = _running(module)
    if isinstance(running, str):
        return running
    key = (cls, running, names)
    uses = _known.get(key)
    if uses is None or not uses.unchanged() or any(getattr(cls, name, None) is not one for name, one in uses.reached):
        reached: dict[str, FunctionType] = {}
        reason = _unfit_class(cls, names) or _read(cls, running, names, reached)
        uses = _known[key] = _Uses(reason, tuple(reached.items()), nothing_changed(cls))
    replaced = next((name for name, _ in uses.reached if name in module.__dict__), None)
    return f"{replaced} was replaced on the instance" if replaced else uses.reason


def _unfit_class(cls: type[nn.Module], names: tuple[str, ...]) -> Reason | None:
    for name in names:
        if hasattr(cls, name):
            return f"its class has a {name} of its own"
    for name, default in (("__getattr__", nn.Module), ("__getattribute__", object)):
        if inspect.getattr_static(cls, name) is not inspect.getattr_static(default, name):
            return f"its class has a {name} of its own"
    return None


def _running(module: nn.Module) -> FunctionType | Reason:
    """The function that computes a module: its class's, or what its configuration names instead."""
    interface, own = _unwrapped(type(module).forward)
    found = None if interface is None else _chosen(module, interface)
    if found is not None:
        return found
    return own if isinstance(own, FunctionType) else f"its forward is a {type(own).__qualname__}"


@lru_cache(maxsize=256)
def _unwrapped(forward: Any) -> tuple[Any, object]:
    """What a configuration chooses from, None if it chooses nothing, and the function that a class itself has."""
    interface = None
    while is_known_wrapper(forward):
        cells = dict(zip(forward.__code__.co_freevars, forward.__closure__ or (), strict=True))
        if "experts_interface" in cells:
            interface = cells["experts_interface"].cell_contents
        forward = forward.__wrapped__
    return interface, forward


def _chosen(module: nn.Module, interface: Any) -> FunctionType | Reason | None:
    """The function that a module's configuration names, if it is known what it does; None for the class's own."""
    name = getattr(getattr(module, "config", None), "_experts_implementation", None)
    if getattr(module, "_is_expert_parallel", False):
        return "its experts are spread over processes"
    if name is None or name == "eager":
        return None
    function = interface.get(name, None)
    reason = _implementations().replaced()
    known = {getattr(sys.modules[_EXPERTS], one, None) for one in _IMPLEMENTATIONS}
    if reason is None and isinstance(function, FunctionType) and function in known:
        return function
    return reason or f"its experts are computed by {name!r}, {'nothing' if function is None else name_of(function)}"


@lru_cache(maxsize=1)
def _implementations() -> Formula:
    return Formula({sys.modules[_EXPERTS]: f"{' '.join(_IMPLEMENTATIONS)} {_HELPERS}"})


def _read(
    cls: type[nn.Module], running: FunctionType, names: tuple[str, ...], reached: dict[str, FunctionType]
) -> Reason | None:
    """Read a function, and every method of the class that it calls; put these into ``reached``."""
    waiting: list[tuple[str, object]] = [("forward", running)]
    if running.__module__ == _EXPERTS:  # it is known, and calls this one
        waiting = [("_apply_gate", getattr(cls, "_apply_gate", None))]
    while waiting:
        name, function = waiting.pop()
        if name in reached or function is None:
            continue
        if not isinstance(function, FunctionType):
            return f"its {name} is a {type(function).__qualname__}"
        if name != "forward":
            reached[name] = function
        if function.__module__ == _EXPERTS:  # its default gate
            continue
        found = _read_function(cls, function, frozenset(names))
        if isinstance(found, str):
            return found
        waiting += found
    return None


def _read_function(
    cls: type[nn.Module], function: FunctionType, names: frozenset[str]
) -> list[tuple[str, object]] | Reason:
    """The methods that a method calls, or the first use of a parameter in it that is not known."""
    node = definition_of(function)
    if not isinstance(node, ast.FunctionDef) or not node.args.args:
        return f"there is no source of {name_of(function)}"
    own, above = node.args.args[0].arg, _parents(node)
    called: list[tuple[str, object]] = []
    for found in ast.walk(node):
        if not isinstance(found, ast.Name):
            continue
        parent = above[found]
        if found.id == "super" or (found.id == own and not isinstance(parent, ast.Attribute)):
            return f"{_place(function, found)}: its {function.__name__} hands itself on"
        if found.id != own or not isinstance(parent, ast.Attribute):
            continue
        if parent.attr in names:
            if not _is_known(parent, above, function):
                return f"{_place(function, found)}: what its {function.__name__} does with {parent.attr} is not known"
        elif hasattr(cls, parent.attr) and parent.attr != "training":
            if hasattr(nn.Module, parent.attr):
                return f"{_place(function, found)}: its {function.__name__} uses nn.Module.{parent.attr}"
            value = inspect.getattr_static(cls, parent.attr)
            if hasattr(type(value), "__get__"):  # any other value is one
                called.append((parent.attr, value))
    return called


def _parents(node: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: parent for parent in ast.walk(node) for child in ast.iter_child_nodes(parent)}


def _place(function: FunctionType, node: ast.Name) -> str:
    return f"{function.__code__.co_filename}:{node.lineno}"


def _is_known(node: ast.expr, above: dict[ast.AST, ast.AST], function: FunctionType) -> bool:
    """Whether an adapted parameter, or what was made of it, is only multiplied with."""
    if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return False
    parent = above[node]
    if isinstance(parent, ast.Subscript) and parent.value is node:
        return _is_known(parent, above, function)
    if isinstance(parent, ast.Attribute):
        call = above[parent]
        if parent.attr in _CASTS and isinstance(call, ast.Call) and call.func is parent:
            return _is_known(call, above, function)
        return parent.attr in _LOOKS or (parent.attr in _TURNS and _is_known(parent, above, function))
    if isinstance(parent, ast.Compare):  # with None
        return all(isinstance(one, (ast.Is, ast.IsNot)) for one in parent.ops)
    if isinstance(parent, ast.BinOp):
        return isinstance(parent.op, ast.MatMult) and parent.right is node
    if isinstance(parent, ast.Call) and len(parent.args) > 1 and parent.args[1] is node:
        return any(_called(parent.func, function) is product for product in _PRODUCTS)
    return False


def _called(node: ast.expr, function: FunctionType) -> object:
    """The function that an expression like ``nn.functional.linear`` names; None if it names nothing global."""
    path = list(_dotted(node))
    found = function.__globals__.get(path[-1]) if path else None
    for name in reversed(path[:-1]):
        found = getattr(found, name, None)
    return found


def _dotted(node: ast.expr) -> Iterator[str]:
    """The names of a dotted expression, the last first; nothing of any other expression."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        yield from (*names, node.id)
