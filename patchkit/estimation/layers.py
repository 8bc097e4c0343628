"""The layers of a model, which of them are alike, and a model that has one of each kind."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from patchkit.estimation.live import Roles

_POSITION = ("idx", "index", "layer_id")
_PARTS = (
    ("norms", ("norm", "ln_", "ln")),
    ("attention", ("attn", "attention", "mixer")),
    ("MLP", ("mlp", "ffn", "feed_forward", "feedforward", "moe", "experts", "fc", "dense", "activation")),
)
PARTS = ("embedding", "attention", "MLP", "norms", "residual stream", "head and loss")
"""What a step keeps is counted by these."""


class Stack(NamedTuple):
    """The decoder layers of a model, as a list in it.

    Attributes:
        name: qualified name of the list.
        holder: the module that has it.
        attribute: its name there.
        kinds: for each layer a number; layers with the same number are alike.
    """

    name: str
    holder: nn.Module
    attribute: str
    kinds: tuple[int, ...]

    @property
    def layers(self) -> nn.ModuleList:
        """The list."""
        found: nn.ModuleList = self.holder._modules[self.attribute]  # type: ignore[assignment]
        return found


def stack_of(model: nn.Module) -> Stack | None:
    """The longest list of modules of which each has parameters to train, outermost first; None if there is none."""
    found: Stack | None = None
    for name, module in model.named_modules():
        for attribute, child in module._modules.items():
            if type(child) is not nn.ModuleList or not _is_trained(child):
                continue
            if found is None or len(child) > len(found.kinds):
                path = f"{name}.{attribute}" if name else attribute
                found = Stack(path, module, attribute, _kinds(child))
    return found


def _is_trained(layers: nn.ModuleList) -> bool:
    return any(parameter.requires_grad for layer in layers for parameter in layer.parameters())


def _kinds(layers: nn.ModuleList) -> tuple[int, ...]:
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(tuple(_look(layer)), len(numbers)) for layer in layers)


def _look(layer: nn.Module) -> Iterator[Hashable]:
    """What says how a layer computes: its classes, its tensors' shapes, and the plain values of its attributes."""
    for name, module in layer.named_modules():
        yield name, type(module)
        for key, value in sorted(vars(module).items()):
            if isinstance(value, (bool, int, float, str)) and not any(word in key for word in _POSITION):
                yield key, value
        for key, parameter in module.named_parameters(recurse=False):
            yield key, tuple(parameter.shape), parameter.dtype, parameter.requires_grad


def chosen(kinds: Sequence[int]) -> tuple[int, ...]:
    """Positions of the layers that stand for all: the first, the last, and of each kind one in between."""
    last = len(kinds) - 1
    between = {kind: position for position, kind in reversed(list(enumerate(kinds))) if 0 < position < last}
    return tuple(sorted({0, last, *between.values()}))


def reduce_to(model: nn.Module, stack: Stack, positions: Sequence[int]) -> None:
    """Leave only these layers in a model, in place, and let its configurations say so."""
    layers = stack.layers
    stack.holder._modules[stack.attribute] = nn.ModuleList([layers[position] for position in positions])
    seen: set[int] = set()
    for module in model.modules():
        config = vars(module).get("config")
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            _shorten(config, len(layers), positions)


def _shorten(config: Any, count: int, positions: Sequence[int]) -> None:
    if getattr(config, "num_hidden_layers", None) != count:
        return
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:  # one entry for each layer
            vars(config)[name] = [value[position] for position in positions]
    config.num_hidden_layers = len(positions)


def roles_of(layers: nn.ModuleList) -> Roles:
    """What the modules of these layers are, by the names that they have in them."""
    parts: dict[int, str] = {}
    for layer in layers:
        for name, child in layer.named_children():
            part = _part_of(name.lower(), type(child).__name__.lower())
            if part is not None:
                parts[id(child)] = part
    return Roles({id(layer): number for number, layer in enumerate(layers)}, parts)


def _part_of(name: str, cls: str) -> str | None:
    """Of a module within a layer: what its name says, or else that of its class."""
    for text in (name, cls):
        for part, words in _PARTS:
            if any(word in text for word in words):
                return part
    return None
