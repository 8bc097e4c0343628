"""Inputs that are written down: of each the shape, and what it holds."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from patchkit.errors import TinyModelError
from patchkit.testing.tiny.tokens import FIRST_TEXT_TOKEN, LAST_TEXT_TOKEN

Holds: TypeAlias = Literal["normal", "tokens", "count"] | int | bool | tuple[int, ...]
"""``normal``: float32 of order 1; ``tokens``: int64; ``count``: int64, 0, 1, ... along the last dimension; a number:
int64, and a truth value: bool, the same everywhere; several numbers: int64, along the last dimension."""


Factor: TypeAlias = int | str
"""A number, ``batch``, ``length`` (text tokens of a row), or the path of a field of the configuration, such as
``text_config.hidden_size``, or of one entry of a list, such as ``patch_sizes.0``."""


class Given(NamedTuple):
    """One input.

    Attributes:
        shape: of each dimension a :data:`Factor`, or several of which it is the product.
        holds: see :data:`Holds`.
        below: tokens stand below it, where a vocabulary is shorter than the usual one.
    """

    shape: tuple[Factor | tuple[Factor, ...], ...]
    holds: Holds = "normal"
    below: int = LAST_TEXT_TOKEN


NOTHING: Mapping[str, Given] = MappingProxyType({})


def given_form(
    inputs: Mapping[str, Given], config: Any, accepted: Container[str], batch: int, length: int, seed: int
) -> dict[str, Tensor]:
    """Tensors by name, without those that a forward does not take.

    Args:
        inputs: by name.
        config: the model's, which shapes are told of.
        accepted: arguments of the forward.
        batch: rows.
        length: text tokens of a row.
        seed: all values depend on this only.

    Raises:
        TinyModelError: a field of a shape is none, or is no number.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {"batch": batch, "length": length}
    return {
        name: _tensor(one, [_size(part, config, sizes) for part in one.shape], generator)
        for name, one in inputs.items()
        if name in accepted
    }


def _size(part: Factor | tuple[Factor, ...], config: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(part, tuple):
        return math.prod(_size(factor, config, sizes) for factor in part)
    if isinstance(part, int):
        return part
    if part in sizes:
        return sizes[part]
    found = config
    for name in part.split("."):
        try:
            found = found[int(name)] if name.isdigit() else getattr(found, name, None)
        except (IndexError, TypeError):
            found = None
    if not isinstance(found, int) or isinstance(found, bool):
        raise TinyModelError(f"no size of an input: {type(config).__name__} has no number {part}")
    return found


def _tensor(one: Given, shape: list[int], generator: torch.Generator) -> Tensor:
    if one.holds == "normal":
        return torch.randn(shape, generator=generator)
    if one.holds == "tokens":
        return torch.randint(min(FIRST_TEXT_TOKEN, one.below - 1), one.below, shape, generator=generator)
    if one.holds == "count":
        return torch.arange(shape[-1]).expand(shape).clone()
    if isinstance(one.holds, tuple):
        return torch.tensor(one.holds).expand(shape).clone()
    return torch.full(shape, one.holds, dtype=torch.bool if isinstance(one.holds, bool) else torch.int64)
