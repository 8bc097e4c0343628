"""Embeddings that multiply what they look up by a constant: gemma's ``sqrt(hidden_size)``.

Each architecture of transformers has a class of its own for this, with one and the same ``forward``. Whether a class is
one of them is read from that source, so that a release that computes something else is noticed.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from patchkit.upstream.classes import definition
from patchkit.upstream.live import read_method
from patchkit.upstream.text import parsed

_EXPECTED = ast.dump(ast.parse("super().forward(ids) * self.embed_scale.to(self.weight.dtype)", mode="eval").body)

_proven: dict[type[nn.Module], Callable[..., Any] | None] = {}
"""The ``forward`` that was read, for each class that was asked about; None if it is another function."""


def is_scaled_embedding(cls: type[nn.Module]) -> bool:
    """Whether a class derives from ``torch.nn.Embedding`` alone and computes ``embedding(ids) * embed_scale``.

    Source is read once for each class, and not while ``torch.compile`` traces: a class that it meets first is no such.
    """
    if cls not in _proven:
        if torch.compiler.is_compiling():
            return False
        _proven[cls] = cls.forward if _reads_as_expected(cls) else None
    return _proven[cls] is cls.forward


def _reads_as_expected(cls: type[nn.Module]) -> bool:
    method = read_method(cls, "forward")
    if cls.__bases__ != (nn.Embedding,) or isinstance(method, str) or method.attribute is not method.function:
        return False
    function = definition(parsed(method.source), method.function.__qualname__)
    if not isinstance(function, ast.FunctionDef):  # one that is async gives something to wait for
        return False
    parameters, body = [argument.arg for argument in function.args.args], function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):  # a docstring
        body = body[1:]
    if len(parameters) != 2 or parameters[0] != "self" or len(body) != 1 or not isinstance(body[0], ast.Return):
        return False
    value = body[0].value
    return value is not None and ast.dump(_Renamed(parameters[1]).visit(copy.deepcopy(value))) == _EXPECTED


class _Renamed(ast.NodeTransformer):
    """Calls the parameter ``ids``, whatever its name is."""

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name("ids", node.ctx) if node.id == self.parameter else node
