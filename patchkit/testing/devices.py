"""The device that checks run on: named, tried, and given a copy of a model and its inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.errors import DeviceError


def usable_device(name: str | torch.device) -> torch.device:
    """A device on which torch can compute here.

    Args:
        name: as torch takes it: ``cpu``, ``cuda``, ``cuda:1``, ``xpu``.

    Returns:
        The device as tensors on it say it: ``cuda`` is the current one, with its index.

    Raises:
        DeviceError: there is none of this name, or it holds no numbers, as ``meta``.
    """
    try:
        probe = torch.ones(1, device=name)
    except (AssertionError, RuntimeError, NotImplementedError) as error:  # the first where torch was built without it
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeviceError(f"there is no device {str(name)!r} here: {said}; 'cpu' is everywhere") from error
    if probe.device.type == "meta":
        raise DeviceError("the device 'meta' holds no numbers to compare; name one that computes, such as 'cpu'")
    probe.add(1).item()  # a driver that does not fit torch shows here
    return probe.device


def on_device(
    model: nn.Module, inputs: Mapping[str, Any], device: str | torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a model, and its inputs, on a device; the model itself is left where it is.

    Args:
        model: on any device that holds numbers, unpatched.
        inputs: tensors, and other values, which stay as they are.
        device: as :func:`usable_device` takes it.

    Raises:
        DeviceError: there is no such device.
    """
    place = usable_device(device)
    moved = {name: value.to(place) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return copy.deepcopy(model).to(place), moved
