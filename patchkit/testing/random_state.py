"""Random state: seeded for a comparison, and given back as it was found.

``torch.manual_seed`` is not used anywhere here. It seeds the generators of every device, and queues seeds for the
devices that are not initialised yet, so that what the user draws there later would be other numbers.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def seed_generators(seed: int, model: nn.Module | None = None) -> None:
    """Seed torch's default generator of the CPU, and of the devices that hold the parameters of a model.

    Args:
        seed: any integer that ``torch.manual_seed`` takes.
        model: its devices draw dropout masks; None for the CPU alone.
    """
    torch.default_generator.manual_seed(seed)
    for device in _devices(model):
        _generator_of(device).manual_seed(seed)


@contextmanager
def preserved_random_state(model: nn.Module | None = None) -> Iterator[None]:
    """Afterwards, every generator is as it was before: torch's, Python's and NumPy's.

    Args:
        model: as for :func:`seed_generators`. A device that does not hold it is not touched.
    """
    states = [(torch.default_generator, torch.default_generator.get_state())]
    states += [(generator, generator.get_state()) for generator in map(_generator_of, _devices(model))]
    numpy = sys.modules.get("numpy")  # nobody has drawn from a library that was not imported
    of_python, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        random.setstate(of_python)
        if numpy:
            numpy.random.set_state(of_numpy)


@contextmanager
def seeded(seed: int, model: nn.Module | None = None) -> Iterator[None]:
    """:func:`seed_generators` for a ``with`` block; afterwards every generator is as it was before."""
    with preserved_random_state(model):
        seed_generators(seed, model)
        yield


def _devices(model: nn.Module | None) -> list[torch.device]:
    found = {parameter.device for parameter in model.parameters()} if model is not None else set()
    return sorted((device for device in found if device.type not in ("cpu", "meta")), key=str)


class _Backend:
    """The generator of a device whose module has no list of generators (mps)."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def get_state(self) -> Tensor:
        state: Tensor = self._module.get_rng_state()
        return state

    def set_state(self, state: Tensor) -> None:
        self._module.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        self._module.manual_seed(seed)


def _generator_of(device: torch.device) -> Any:
    module: Any = torch.get_device_module(device)
    generators = getattr(module, "default_generators", ())
    return generators[device.index or 0] if generators else _Backend(module)
