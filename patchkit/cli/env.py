"""``patchkit env``: versions, devices and the choice of kernels, to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from patchkit.cli.devices import processor_name
from patchkit.collision import message, other_package
from patchkit.version import __version__

PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "triton": ("triton", "pytorch-triton", "pytorch-triton-rocm", "pytorch-triton-xpu", "triton-windows"),
    "transformers": ("transformers",),
    "peft": ("peft",),
    "libcst": ("libcst",),
    "accelerate": ("accelerate",),
    "bitsandbytes": ("bitsandbytes",),
    "kernels": ("kernels",),
    "liger-kernel": ("liger-kernel", "liger-kernel-nightly"),
}
"""What matters to patchkit, and the names under which each is distributed."""


@dataclass(frozen=True)
class Device:
    """A device that torch sees.

    Attributes:
        kind: ``CPU``, ``CUDA``, ``ROCm`` or ``XPU``.
        name: the vendor's name of it.
        capability: ``sm_90``, ``gfx942``, ...; empty where there is no such thing.
    """

    kind: str
    name: str
    capability: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.name, f"({self.capability})" if self.capability else "")))


@dataclass(frozen=True)
class Facts:
    """What ``patchkit env`` tells.

    Attributes:
        patchkit: version of patchkit.
        python: version and implementation.
        system: operating system, release and machine.
        packages: version of each of :data:`PACKAGES`, None if it is not installed.
        devices: every device, the CPU first.
        triton_kernels: whether the Triton kernels run, on some device, rather than their torch references.
        triton_kernels_reason: why they do or do not.
        tuned: when each device was tuned with these versions (``patchkit tune``), by its name; only those that were.
        other: name and version of another package that is in the way of this one; empty if there is none.
    """

    patchkit: str
    python: str
    system: str
    packages: dict[str, str | None]
    devices: tuple[Device, ...]
    triton_kernels: bool
    triton_kernels_reason: str
    tuned: dict[str, str]
    other: str = ""

    @classmethod
    def read(cls) -> Facts:
        """Read it from the running interpreter."""
        accelerators, problem = _accelerators()
        triton_kernels, reason = _triton_kernels(accelerators, problem)
        return cls(
            patchkit=__version__,
            python=f"{platform.python_version()} ({platform.python_implementation()})",
            system=platform.platform(),
            packages={name: _version(distributions) for name, distributions in PACKAGES.items()},
            devices=(Device("CPU", f"{processor_name()}, {os.cpu_count()} cores"), *accelerators),
            triton_kernels=triton_kernels,
            triton_kernels_reason=reason,
            tuned=_tuned() if triton_kernels else {},
            other=other_package(),
        )

    def as_markdown(self) -> str:
        """A Markdown list, one line per fact."""
        facts = {
            "patchkit": f"{self.patchkit} ({message(self.other)})" if self.other else self.patchkit,
            "Python": self.python,
            "system": self.system,
            **{name: version or "not installed" for name, version in self.packages.items()},
            "devices": "; ".join(map(str, self.devices)),
            "Triton kernels": f"{'used' if self.triton_kernels else 'not used'}: {self.triton_kernels_reason}",
        }
        if self.triton_kernels:
            tuned = "; ".join(f"{name}, {date}" for name, date in self.tuned.items())
            facts["tuned"] = tuned or "no; `patchkit tune` finds what is fastest on this device"
        return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def env(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a Markdown list.")] = False,
) -> None:
    """Print versions, devices and whether Triton kernels are used, to paste into a bug report."""
    import json

    facts = Facts.read()
    typer.echo(json.dumps(asdict(facts), indent=2) if as_json else facts.as_markdown())


def _version(distributions: tuple[str, ...]) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _accelerators() -> tuple[tuple[Device, ...], str]:
    """The accelerators that torch sees; if torch cannot be asked, none and the reason."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch that cannot be loaded
        return (), f"torch cannot be imported ({error})"
    devices: list[Device] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        if torch.version.hip:
            devices.append(Device("ROCm", properties.name, properties.gcnArchName.split(":")[0]))
        else:
            devices.append(Device("CUDA", properties.name, f"sm_{properties.major}{properties.minor}"))
    if torch.xpu.is_available():
        devices += (Device("XPU", torch.xpu.get_device_name(index)) for index in range(torch.xpu.device_count()))
    return tuple(devices), ""


def _triton_kernels(accelerators: tuple[Device, ...], problem: str) -> tuple[bool, str]:
    """Whether the Triton kernels run, and why."""
    if problem:
        return False, problem
    if not accelerators:
        return False, "torch sees no CUDA, ROCm or XPU device; the torch references run on the CPU"
    from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

    if not TRITON_AVAILABLE:
        return False, "triton cannot be imported; the torch references run on the device"
    return True, f"on tensors of {', '.join(device.name for device in accelerators)}"


def _tuned() -> dict[str, str]:
    """When each device was tuned, by its name."""
    import torch

    from patchkit.errors import CacheError
    from patchkit.tuning.record import ACCELERATORS, described, load

    found = {}
    for kind in ACCELERATORS:
        module = torch.get_device_module(kind)
        for index in range(module.device_count() if module.is_available() else 0):
            description = described(torch.device(kind, index))
            try:
                tuned = load(description)
            except CacheError as error:
                found[description["device"]] = str(error)
            else:
                if tuned is not None:
                    found[description["device"]] = tuned.date
    return found
