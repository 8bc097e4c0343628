"""How large a tiny model may be: a configuration that nobody has made small would take all memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from patchkit.errors import TinyModelError
from patchkit.testing.random_state import preserved_random_state


def require_few_parameters(config: Any, model_class: type[nn.Module], most: int) -> None:
    """Make sure that a model is small before memory is asked for.

    Some constructors compute with numbers, which the ``meta`` device has none of. Of such a model nothing is known
    before it is made, and :func:`few_parameters` watches over that.

    Raises:
        TinyModelError: it is not; the message has its largest parameter.
    """
    try:
        with preserved_random_state(), torch.device("meta"):
            parameters = list(model_class(copy.deepcopy(config)).named_parameters())
    except Exception:  # the real one says what is wrong
        return
    if sum(parameter.numel() for _, parameter in parameters) > most:
        raise _too_large(*max(parameters, key=lambda item: item[1].numel()))


@contextmanager
def few_parameters(most: int) -> Iterator[None]:
    """While a model is made in this thread: an error as soon as its parameters are too many, before they are filled.

    Raises:
        TinyModelError: they are; the message has the largest until then.
    """
    thread, count = threading.get_ident(), 0
    largest: tuple[str, torch.Tensor] = ("", torch.empty(0))

    def watch(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count, largest
        if parameter is None or threading.get_ident() != thread:
            return
        count += parameter.numel()
        if parameter.numel() > largest[1].numel():
            largest = f"{type(module).__name__}.{name}", parameter
        if count > most:
            raise _too_large(*largest)

    handle = register_module_parameter_registration_hook(watch)
    try:
        yield
    finally:
        handle.remove()


def _too_large(name: str, largest: torch.Tensor) -> TinyModelError:
    return TinyModelError(f"{name} of shape {list(largest.shape)} is not tiny")
