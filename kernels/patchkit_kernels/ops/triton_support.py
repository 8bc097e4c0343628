"""Triton where it is installed, and modules that still import where it is not.

Triton publishes wheels for Linux only. The kernels' files hold their ``@jit`` functions next to the torch reference, so
importing one must work without Triton too: there :func:`jit` hands the plain function back, nothing ever calls it, and
every device runs the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        triton = tl = None

__all__ = ["TRITON_AVAILABLE", "TRITON_DISPATCH_KEYS", "TRITON_DTYPES", "device_guard", "jit", "tl"]

TRITON_AVAILABLE: bool = triton is not None

TRITON_DISPATCH_KEYS = ("CUDA", "XPU")
"""The devices that run the kernels; ROCm's tensors carry the CUDA key."""

TRITON_DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
"""What the kernels take. They compute in fp32, so fp64 would lose digits: it runs the reference."""


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``, or ``function`` itself where Triton is missing.

    A file that uses it starts with ``from __future__ import annotations``: an evaluated ``tl.constexpr`` needs Triton.
    """
    return triton.jit(function) if TRITON_AVAILABLE else function


def device_guard(tensor: Tensor) -> AbstractContextManager[None]:
    """Make ``tensor``'s device current: Triton launches on the current device, whatever device the pointers are of."""
    if tensor.device.type == "cpu":  # Triton's interpreter
        return nullcontext()
    guard: AbstractContextManager[None] = torch.get_device_module(tensor.device).device(tensor.device.index)
    return guard
