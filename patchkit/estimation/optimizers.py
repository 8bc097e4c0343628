"""The bytes of an optimizer's states for the parameters that are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from torch import nn

from patchkit.errors import EstimateError

_STEP = 4  # bytes: torch keeps the number of a parameter's steps as a float32 tensor


def _adamw(parameter: nn.Parameter) -> int:
    """``exp_avg`` and ``exp_avg_sq`` like the parameter, and the step: ``torch/optim/adamw.py``."""
    return 2 * parameter.nbytes + _STEP


def _adamw_8bit(parameter: nn.Parameter) -> int:
    """Two states of a byte for each element, and a float32 for each block of 256 of both.

    Parameters of fewer than 4096 elements have float32 states: ``bitsandbytes/optim/optimizer.py``. The two tables of
    256 float32 values that all of them share are left out.
    """
    count = parameter.numel()
    return 8 * count if count < 4096 else 2 * (count + 4 * -(-count // 256))


def _sgd(parameter: nn.Parameter) -> int:
    """Nothing: ``torch/optim/sgd.py`` without momentum."""
    return 0


def _momentum(parameter: nn.Parameter) -> int:
    """``momentum_buffer`` like the parameter: ``torch/optim/sgd.py``."""
    return parameter.nbytes


def _adafactor(parameter: nn.Parameter) -> int:
    """Row and column means in float32 of a matrix, all squares of a vector: ``transformers/optimization.py``."""
    if parameter.dim() < 2:
        return 4 * parameter.numel()
    *leading, rows, columns = parameter.shape
    matrices = 1
    for size in leading:
        matrices *= size
    return 4 * matrices * (rows + columns)


OPTIMIZERS: Mapping[str, Callable[[nn.Parameter], int]] = MappingProxyType(
    {"adamw": _adamw, "adamw_8bit": _adamw_8bit, "adafactor": _adafactor, "momentum": _momentum, "sgd": _sgd}
)
"""Bytes of one parameter's states, by the kind of optimizer."""


def optimizer_bytes(parameters: Iterable[nn.Parameter]) -> dict[str, int]:
    """What each kind of optimizer keeps for these parameters."""
    found = list(parameters)
    return {name: sum(map(size, found)) for name, size in OPTIMIZERS.items()}


def known_optimizer(name: str) -> str:
    """The name, if it is one of :data:`OPTIMIZERS`.

    Raises:
        EstimateError: it is not.
    """
    if name not in OPTIMIZERS:
        raise EstimateError(f"unknown optimizer {name!r}. There are {', '.join(OPTIMIZERS)}.")
    return name
