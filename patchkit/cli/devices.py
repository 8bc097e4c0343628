"""Devices that a command is asked to use, and the processor that it runs on."""

from __future__ import annotations

import platform

import typer

from patchkit.cli.console import error_console


def require_device(device: str, hint: str = "--device cpu works anywhere.") -> None:
    """End the command, with the reason in one line, where torch cannot use a device.

    Args:
        device: as torch names it.
        hint: what to do instead.

    Raises:
        Exit: it cannot.
    """
    import torch

    try:
        torch.empty(1, device=device).cpu()
    except (AssertionError, RuntimeError) as error:  # an AssertionError of a torch that was built without CUDA
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        error_console().print(f"patchkit: error: there is no device {device!r} here: {said}. {hint}")
        raise typer.Exit(2) from error


def processor_name() -> str:
    """The processor's name: /proc/cpuinfo has it on Linux, where :func:`platform.processor` often has not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
