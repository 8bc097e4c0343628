"""What a device answered: in a file of the cache directory for each device and set of versions, and in use.

A file is data: only sizes of the grid and choices that are asked about are taken from it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import patchkit_kernels
from patchkit.cache.digests import digest, sources_digest
from patchkit.cache.storage import TUNED, cache_directory, read_ours, warn_once, write_whole
from patchkit.errors import CacheError
from patchkit.tuning.questions import Answer, Shape, Tried
from patchkit_kernels.lora.choices import CHOICES
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES, LaunchSizes

ONE_PASS_RANKS, IN_ACTIVATION_RANKS = (16, 32, 64), (16, 32)
LEAST_ELEMENTS = (2**16, 2**18, 2**20, 2**22)
"""What is asked about, of :class:`~patchkit_kernels.lora.choices.Choices`."""

ACCELERATORS = ("cuda", "xpu")
"""The devices that run kernels, as torch names their kinds; ROCm's are cuda."""

_CHOICES: Mapping[str, Any] = {
    "bf16x3": (False, True),
    "least_elements": range(1, 2**40),
    "one_pass_rank": (0, *ONE_PASS_RANKS),
    "in_activation_rank": (0, *IN_ACTIVATION_RANKS),
}


@dataclass(frozen=True)
class Tuned:
    """What is the fastest on a device.

    Attributes:
        shape: at which sizes that was measured.
        date: when, as ISO 8601 has it.
        sizes: of launches.
        choices: fields of :class:`~patchkit_kernels.lora.choices.Choices`, and what they are.
        answers: what was asked, and found.
    """

    shape: Shape
    date: str
    sizes: LaunchSizes
    choices: Mapping[str, int]
    answers: tuple[Answer, ...] = ()

    def lines(self) -> list[str]:
        """What is used, for people."""
        others = [f"{field}: {size}" for field, size in self.sizes._asdict().items() if size != GRID[field][0]]
        chosen = [f"{name} = {value}" for name, value in self.choices.items()]
        return [f"tiles: {'; '.join(others) or 'the usual ones'}", f"ways: {', '.join(chosen)}"]

    def to_json(self) -> dict[str, Any]:
        """As JSON can write it."""
        return {
            "shape": self.shape._asdict(),
            "date": self.date,
            "sizes": {field: list(size) for field, size in self.sizes._asdict().items()},
            "choices": dict(self.choices),
            "answers": [
                {"title": one.title, "best": one.best, "tried": [vars(tried) for tried in one.tried]}
                for one in self.answers
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> Tuned:
        """Read what :meth:`to_json` gave.

        Raises:
            ValueError: it is something else, or names what is not asked about.
        """
        try:
            sizes = {field: _of_grid(field, data["sizes"][field]) for field in GRID}
            choices = {name: value for name, value in data["choices"].items() if value in _CHOICES[name]}
            if len(choices) < len(data["choices"]) or not all(type(value) in (int, bool) for value in choices.values()):
                raise ValueError(f"there is no such choice: {data['choices']}")
            answers = tuple(
                [
                    Answer(one["title"], tuple([Tried(**tried) for tried in one["tried"]]), one["best"])
                    for one in data["answers"]
                ]
            )
            return cls(Shape(**data["shape"]), str(data["date"]), LaunchSizes(**sizes), choices, answers)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _of_grid(field: str, found: Any) -> Any:
    for size in GRID[field]:
        if list(size) == found:
            return size
    raise ValueError(f"{field} is not launched with {found}")


# ---- the file


def described(device: torch.device) -> dict[str, str]:
    """What answers depend on: the device and the versions. The memory of a device is no part of its name."""
    import triton

    module = torch.get_device_module(device)
    kernels = Path(str(patchkit_kernels.__file__)).parent
    return {
        "device": str(module.get_device_name(device)),
        "runtime": str(torch.version.cuda or torch.version.hip or ""),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "kernels": sources_digest(kernels),
    }


def save(tuned: Tuned, description: Mapping[str, str]) -> Path:
    """Write what was found for a device, see :func:`described`, and return where.

    Raises:
        CacheError: the cache cannot be written.
    """
    path = _path(description)
    write_whole(path, json.dumps({**description, **tuned.to_json()}, indent=1) + "\n")
    _found.cache_clear()
    return path


def load(description: Mapping[str, str]) -> Tuned | None:
    """What was found for a device with these versions; None if it was not asked.

    Raises:
        CacheError: there is a file, and it cannot be read or believed.
    """
    path = _path(description)
    try:
        return Tuned.from_json(json.loads(read_ours(path)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CacheError(f"{path} is damaged: {error}; `patchkit tune` writes it again") from error


def _path(description: Mapping[str, str]) -> Path:
    return cache_directory() / TUNED / f"{digest(sorted(description.items()))}.json"


# ---- in use


def use(tuned: Tuned) -> None:
    """Have all kernels of this process run so, on whatever device."""
    LAUNCH_SIZES.value = tuned.sizes
    choices: dict[str, Any] = dict(tuned.choices)
    CHOICES.value = CHOICES.value._replace(**choices)


def use_for(model: nn.Module) -> Tuned | None:
    """Use what was found for the device that a model is on, if there is one, and if it was asked.

    A process has one set of sizes and choices. Where models are on devices of several kinds, those of the last one
    hold, with the same numbers up to rounding.
    """
    if not any(torch.get_device_module(name).is_available() for name in ACCELERATORS):
        return None
    for parameter in model.parameters():
        if parameter.device.type in ACCELERATORS:
            found = _found(parameter.device)
            if found is not None:
                use(found)
            return found
    return None


@functools.lru_cache(maxsize=16)
def _found(device: torch.device) -> Tuned | None:
    """Of a device, once in a process."""
    try:
        return load(described(device))
    except ImportError:  # without Triton no kernel runs
        return None
    except (CacheError, OSError) as error:
        warn_once("tuned", f"kernels run as usual, not as `patchkit tune` found best: {error}")
        return None
