"""What a class says of its attributes: which are linear layers, which may be activations, which are its methods.

``__init__`` says it by what it calls: ``self.wq = nn.Linear(...)``, ``self.act = ACT2FN[...]``. A description that is
wrong costs time and never changes a number, so the names of classes are enough: the runtime looks at the modules.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from patchkit.upstream.classes import Function, namesakes

Kind = Literal["linear", "activation", "layer"]
"""A linear layer, what may be an activation, or a layer of any other kind."""

_LINEAR = re.compile(r"(Linear|LinearLayer|Conv1D)$|^[a-z_]*linear[a-z_]*$")
"""Classes, and functions that make one: ``nn.Linear``, ``FalconLinear``, GPT-2's ``Conv1D``, ``make_linear``."""

_LAYER = re.compile(r"norm|drop|conv|pool|embed|rotary|rope|identity|attention|mlp|sequential|list")
"""Parts of the names of layers that are neither a projection nor an activation."""

_SHORT_NAMES = frozenset({"ln", "act", "activation", "gelu", "silu", "relu"})
"""Words in names of attributes that are no projection, where nothing else says what they are."""


@dataclass
class Attributes:
    """What is known of the attributes of an object.

    Attributes:
        kinds: by name, of those that an ``__init__`` sets.
        methods: the names of the class's methods.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    methods: set[str] = field(default_factory=set)

    def add(self, node: ast.ClassDef, linear_classes: Iterable[str] = ()) -> None:
        """Note what one class says. What a class below it in the inheritance has said stays.

        Args:
            node: the class.
            linear_classes: names of classes that are linear layers.
        """
        for name, several in namesakes(node.body).items():
            if isinstance(several[-1].node, Function):
                self.methods.add(name)
                if name == "__init__":
                    for attribute, kind in _kinds_set_in(several[-1].node, frozenset(linear_classes)).items():
                        self.kinds.setdefault(attribute, kind)

    def may_be_projection(self, name: str) -> bool:
        """Whether an attribute is a linear layer, or may be one as far as is known."""
        if name in self.kinds:
            return self.kinds[name] == "linear"
        words = frozenset(re.split(r"[_\d]+", name.lower()))
        return name not in self.methods and not _LAYER.search(name.lower()) and not words & _SHORT_NAMES

    def may_be_activation(self, name: str) -> bool:
        """Whether an attribute is an activation, or may be one as far as is known."""
        if name in self.kinds:
            return self.kinds[name] == "activation"
        return name not in self.methods and not _LAYER.search(name.lower()) and "linear" not in name.lower()


def linear_classes(classes: Mapping[str, ast.ClassDef]) -> frozenset[str]:
    """The classes of a module that inherit from a linear layer directly, whatever they are called."""
    return frozenset(
        name for name, node in classes.items() if any(_LINEAR.search(_last_name(base)) for base in node.bases)
    )


def _kinds_set_in(init: Function, linear: frozenset[str]) -> dict[str, Kind]:
    """The kinds of attributes that ``__init__`` sets, where it says them. A linear layer under a condition is one."""
    found: dict[str, Kind] = {}
    for node in ast.walk(init):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            kinds = set(_kinds_of(node.value, linear))
            for target in targets:
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and kinds:
                    kinds |= {found[target.attr]} if target.attr in found else set()
                    found[target.attr] = next(kind for kind in _STRONGEST_FIRST if kind in kinds)
    return found


_STRONGEST_FIRST: tuple[Kind, ...] = ("linear", "activation", "layer")


def _kinds_of(value: ast.expr, linear: frozenset[str]) -> Iterator[Kind]:
    """What an expression may make. A variable may hold anything, so nothing is said of it."""
    if isinstance(value, ast.IfExp):
        yield from _kinds_of(value.body, linear)
        yield from _kinds_of(value.orelse, linear)
    elif isinstance(value, ast.Call):
        name = _last_name(value.func)
        if name in linear or _LINEAR.search(name):
            yield "linear"
        else:
            yield "layer" if _LAYER.search(name.lower()) or "linear" in name.lower() else "activation"
    elif isinstance(value, ast.Subscript):  # ACT2FN[...]
        yield "layer" if _LAYER.search(_last_name(value.value).lower()) else "activation"


def _last_name(expression: ast.expr) -> str:
    """``Linear`` of ``torch.nn.Linear``; empty for what is no name with dots."""
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""
