"""The tiny models of an architecture: those that patchkit has recipes of, or else models made of what it names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from patchkit.arch.registry import is_built_in
from patchkit.arch.spec import Architecture
from patchkit.errors import TinyModelError
from patchkit.testing.parity import Inputs
from patchkit.testing.random_state import seeded
from patchkit.testing.tiny.factory import tiny_model_from
from patchkit.testing.tiny.inputs import tiny_inputs_for
from patchkit.testing.tiny_inputs import tiny_inputs
from patchkit.testing.tiny_models import initialise, tiny_model, tiny_models_of


class TinyModel(NamedTuple):
    """A small model, and what its ``forward`` takes.

    Attributes:
        model: without adapters, in train mode; of transformers, unless a plugin makes it.
        inputs: keyword arguments, with ``labels`` where it takes them.
    """

    model: nn.Module
    inputs: Inputs


def tiny_names(architecture: Architecture) -> tuple[str, ...]:
    """Names for the tiny models of an architecture: of recipes, of its model class, or its model types."""
    if is_built_in(architecture.name):
        return tiny_models_of(architecture.name)
    return (architecture.model.rpartition(":")[2],) if architecture.model else architecture.model_types


def tiny_of(
    architecture: Architecture, name: str, *, batch: int = 2, length: int = 12, **config_overrides: Any
) -> TinyModel:
    """One of the tiny models of an architecture.

    Args:
        architecture: patchkit's own or a plugin's.
        name: one of :func:`tiny_names`.
        batch: rows of the inputs.
        length: text tokens of a row.
        config_overrides: values of the configuration, see :func:`tiny_model` and :func:`tiny_model_from`. They and the
            size of the inputs are not for a model that a plugin's function makes.

    Raises:
        ValueError: there is no such model in this release of transformers, or none can be made; the message says why.
    """
    if is_built_in(architecture.name):
        if not name:
            raise TinyModelError("patchkit.testing has no recipe of it")
        model = tiny_model(name, **config_overrides)
        return TinyModel(model, tiny_inputs(name, model, batch=batch, length=length))
    source = source_of_tiny(architecture, name)
    if isinstance(source, FunctionType):
        return _made_by(source)
    model = tiny_model_from(source, **config_overrides)
    return TinyModel(model, tiny_inputs_for(model, batch=batch, length=length))


def source_of_tiny(architecture: Architecture, name: str) -> str | type[PreTrainedModel] | FunctionType:
    """What the tiny model of a plugin's architecture is made of: a model type of transformers, a class, or a function.

    Args:
        architecture: of a plugin.
        name: one of :func:`tiny_names`.

    Raises:
        TinyModelError: there is nothing of this kind.
    """
    if architecture.model:
        return _named(architecture, architecture.model)
    if name in CONFIG_MAPPING:
        return name
    said = f"transformers has no model type {name!r}" if name else f"architecture {architecture.name!r} has no model"
    raise TinyModelError(f'{said}; name a class in the architecture: model="CLASS", or "PACKAGE.MODULE:CLASS"')


def _named(architecture: Architecture, named: str) -> type[PreTrainedModel] | FunctionType:
    """The model class or the function that an architecture names; its module is imported.

    Raises:
        TinyModelError: it cannot be imported, or is neither.
    """
    module, _, name = named.rpartition(":")
    module = module or architecture.module
    where = f"architecture {architecture.name!r} names the model {module}:{name}"
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module may raise anything while it is imported
        raise TinyModelError(f"{where}, which cannot be imported: {type(error).__name__}: {error}") from error
    if isinstance(found, FunctionType) or (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        return found
    raise TinyModelError(f"{where}, which is neither a PreTrainedModel nor a function that returns a small model")


def _made_by(function: FunctionType) -> TinyModel:
    """The model and the inputs that a plugin's function returns. Weights are drawn anew, so that they mean something.

    Raises:
        TinyModelError: it fails, or returns something else.
    """
    where = f"{function.__module__}:{function.__qualname__}"
    try:
        with seeded(0):
            found = function()
    except Exception as error:  # it is anybody's code
        raise TinyModelError(f"{where} fails: {type(error).__name__}: {error}") from error
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], nn.Module):
        raise TinyModelError(f"{where} returns no pair of a model and the keyword arguments of its forward")
    model, inputs = found
    if not isinstance(inputs, Mapping) or not all(isinstance(value, Tensor) for value in inputs.values()):
        raise TinyModelError(f"{where} returns inputs that are no tensors by name")
    initialise(model)
    return TinyModel(model.train(), inputs)
